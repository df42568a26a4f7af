"""Search without competition: greedy, and sampling of one or several hypotheses a row.

A hypothesis that nothing may follow is dropped, as in a beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.board import Board
from tfray.generation.draws import draw, uniform
from tfray.generation.processors import NextTokens
from tfray.generation.ranking import NEVER, length_penalty
from tfray.generation.rows import Hypothesis
from tfray.tokens.special import EOS_ID


class Single:
    """Each hypothesis goes its own way: by the most probable token, or by chance."""

    def __init__(self, board: Board, config: GenerationConfig) -> None:
        self.board, self.config = board, config
        self.is_open = board.add(torch.ones_like(board.last, dtype=torch.bool))
        self.lengths = board.add(torch.zeros_like(board.last))

    def admit(self, slots: list[int]) -> None:
        """Begin rows in these slots."""
        self.is_open[slots] = True
        self.lengths[slots] = 0

    def advance(self, found: NextTokens, attention_weights: Tensor) -> tuple[None, list[int]]:
        """Extend every hypothesis by a token; return the slots of rows that are done."""
        board, rows = self.board, self.board.rows
        if self.config.search == "beam":
            values, tokens = found.best()
        else:
            seeds = board.numbers[:rows].repeat_interleave(board.width)
            sample = torch.arange(board.width, device=board.device).repeat(rows)
            step = board.positions[:rows].repeat_interleave(board.width)
            chance = uniform(self.config.seed, seeds, sample, step)
            log_probs = found.log_probs()
            tokens = draw(log_probs, chance, self.config)
            values = log_probs.gather(1, tokens[:, None]).squeeze(1)
        tokens, values = tokens.view(rows, -1), values.view(rows, -1)
        is_open = self.is_open[:rows]
        board.scores[:rows] += values.double().masked_fill(~is_open, 0.0)
        board.extend(tokens, None)
        self.lengths[:rows] += is_open
        is_open &= (tokens != EOS_ID) & (board.scores[:rows] > NEVER)
        done = ~is_open.any(1) | (board.positions[:rows] >= board.limits[:rows])
        return None, done.nonzero().flatten().tolist()

    def finish(self, slots: list[int]) -> list[list[Hypothesis]]:
        """Return the hypotheses of rows that are done; the greedy one, or the samples in the order of drawing."""
        history = self.board.history[slots, :, : int(self.lengths[slots].max())].tolist()
        lengths, scores = self.lengths[slots], self.board.scores[slots]
        ranking = scores / length_penalty(lengths, self.config)
        parts = (part.tolist() for part in (lengths, scores, ranking, self.is_open[slots]))
        return [
            [
                Hypothesis(ids[: length - (not is_open)], score, not is_open, ranking_score)
                for ids, length, score, ranking_score, is_open in zip(*row, strict=True)
                if score > NEVER
            ]
            for row in zip(history, *parts, strict=True)
        ]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Nothing is kept outside the board's tensors."""
