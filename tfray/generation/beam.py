"""Beam search: the beam_size most probable beginnings of each row, extended token by token.

Of the extensions of all beginnings of a row, those that end and are among the beam_size best become
hypotheses, ranked by log-probability / length penalty + coverage penalty; the beam_size best of the others
go on. A row is done when nothing open can rank above its n_best hypotheses any more, which is exact:
log-probability only falls, and the longest length is the most favourable one. `early_stopping: beam` ends
it as soon as beam_size hypotheses have ended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.board import Board
from tfray.generation.constraints import choose_with_phrases, unmet
from tfray.generation.processors import NextTokens
from tfray.generation.ranking import NEVER, length_penalty
from tfray.generation.rows import Hypothesis
from tfray.tokens.special import EOS_ID


class Beam:
    """The beams of all rows in slots."""

    def __init__(self, board: Board, config: GenerationConfig, source: int) -> None:
        self.board, self.config, self.size = board, config, config.beam_size
        slots = len(board.limits)
        self.ended: list[list[Hypothesis]] = [[] for _ in range(slots)]
        self.counts = [0] * slots
        self.threshold = board.add(torch.full((slots,), NEVER, dtype=torch.float64, device=board.device))
        """The ranking score that something open must beat: of the n_best-th hypothesis so far."""
        self.full = board.add(torch.zeros(slots, dtype=torch.bool, device=board.device))
        self.coverage = None
        if config.coverage_penalty:
            self.coverage = board.add(torch.zeros(slots, self.size, source, dtype=torch.float32, device=board.device))

    def admit(self, slots: list[int]) -> None:
        """Begin rows in these slots: all beginnings are alike, so only one may go on."""
        self.board.scores[slots, 1:] = NEVER
        self.threshold[slots] = NEVER
        self.full[slots] = False
        for slot in slots:
            self.ended[slot], self.counts[slot] = [], 0
        if self.coverage is not None:
            self.coverage[slots] = 0

    def advance(self, found: NextTokens, attention_weights: Tensor) -> tuple[Tensor, list[int]]:
        """Extend the beams; return each hypothesis' parent (rows, size), and the slots that are done."""
        board, rows, size = self.board, self.board.rows, self.size
        if self.coverage is not None:
            self.coverage[:rows, :, : attention_weights.shape[-1]] += attention_weights
        values, ids = found.best_few(2 * size)
        each = ids.shape[1]
        totals = (board.scores[:rows, :, None] + values.view(rows, size, each).double()).flatten(1)
        order = totals.sort(dim=-1, descending=True, stable=True)
        # Twice the beam, so that enough are left when all that end are taken out.
        totals, places = order.values[:, : 2 * size], order.indices[:, : 2 * size]
        parents, tokens = places // each, ids.view(rows, -1).gather(1, places)
        for slot, request in enumerate(board.requests[:rows]):
            # While a prefix is written there is nothing to deal.
            if request.must and board.taken[slot] >= len(request.prefix):
                self.allocate(slot, found, totals, parents, tokens)
        is_end = tokens == EOS_ID
        # An end counts only among the beam_size best, as any other candidate would.
        self.collect(is_end[:, :size] & (totals[:, :size] > NEVER), parents, totals)
        kept = is_end.byte().sort(dim=-1, stable=True).indices[:, :size]
        totals, parents, tokens = (part.gather(1, kept) for part in (totals, parents, tokens))
        board.scores[:rows] = totals
        board.extend(tokens, parents)
        if self.coverage is not None:
            coverage = self.coverage[:rows]
            self.coverage[:rows] = coverage.gather(1, parents[..., None].expand_as(coverage))
        return parents, self.done_slots()

    def allocate(self, slot: int, found: NextTokens, totals: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Replace a row's candidates by those that keep room for the phrases that it must contain."""
        board = self.board
        own = found.log_probs(slice(slot * self.size, (slot + 1) * self.size))
        ids = board.history[slot, :, : board.taken[slot]].tolist()
        room = int(board.limits[slot]) - board.taken[slot]
        chosen = choose_with_phrases(board.requests[slot].must, ids, board.scores[slot].tolist(), own, room)
        for place, (total, parent, token) in enumerate(chosen):
            totals[slot, place], parents[slot, place], tokens[slot, place] = total, parent, token

    def done_slots(self) -> list[int]:
        """Return the slots whose rows are at their limit, have enough hypotheses, or cannot find better ones."""
        board, rows = self.board, self.board.rows
        best = board.scores[:rows].amax(1)
        bound = best / length_penalty(board.limits[:rows], self.config)
        done = (self.threshold[:rows] >= bound) | (board.positions[:rows] >= board.limits[:rows]) | (best == NEVER)
        if self.config.early_stopping == "beam":
            done |= self.full[:rows]
        return done.nonzero().flatten().tolist()

    def collect(self, ends: Tensor, parents: Tensor, totals: Tensor) -> None:
        """Take the hypotheses that end now."""
        events = ends.nonzero()
        if not len(events):
            return
        slots, candidates = events.unbind(1)
        places = parents[slots, candidates]
        histories = self.board.history[slots, places, : self.board.reached].tolist()
        scores = totals[slots, candidates]
        lengths = self.board.positions[slots] + 1
        normalized = scores / length_penalty(lengths, self.config) + self.coverage_penalty(slots, places)
        changed = set()
        for slot, ids, length, score, ranking_score in zip(
            slots.tolist(), histories, lengths.tolist(), scores.tolist(), normalized.tolist(), strict=True
        ):
            self.ended[slot].append(Hypothesis(ids[: length - 1], score, True, ranking_score))
            self.counts[slot] += 1
            changed.add(slot)
        for slot in changed:
            # Stable: of equal ranking scores the one that ended first, then the one in the better place.
            self.ended[slot].sort(key=lambda hypothesis: -hypothesis.ranking_score)
            del self.ended[slot][self.config.n_best :]
            if len(self.ended[slot]) == self.config.n_best:
                self.threshold[slot] = self.ended[slot][-1].ranking_score
            self.full[slot] = self.counts[slot] >= self.size

    def coverage_penalty(self, slots: Tensor, places: Tensor) -> Tensor | float:
        """Return coverage_penalty x the sum over source positions of log(min(attention so far, 1))
        (Wu et al. 2016, equation 14), 0 where it is off."""
        if self.coverage is None:
            return 0.0
        coverage = self.coverage[slots, places].double()
        sources = (self.board.requests[slot].source for slot in slots.tolist())
        lengths = torch.tensor([*map(len, sources)], device=coverage.device)
        is_source = torch.arange(coverage.shape[1], device=coverage.device) < lengths[:, None]
        logs = coverage.clamp(1e-30, 1.0).log() * is_source
        return self.config.coverage_penalty * logs.sum(1)

    def finish(self, slots: list[int]) -> list[list[Hypothesis]]:
        """Return the n_best hypotheses of rows that are done, filled up with beginnings that have not ended."""
        return [[*self.ended[slot], *self.unfinished(slot)][: self.config.n_best] for slot in slots]

    def unfinished(self, slot: int) -> list[Hypothesis]:
        """Return a row's open beginnings, the best first; none where enough have ended."""
        if len(self.ended[slot]) >= self.config.n_best:
            return []
        board = self.board
        ids = board.history[slot, :, : board.taken[slot]].tolist()
        place = torch.arange(self.size, device=board.device)
        ranking = board.scores[slot] / length_penalty(board.positions[slot], self.config)
        ranking = (ranking + self.coverage_penalty(torch.full_like(place, slot), place)).tolist()
        found = [
            Hypothesis(beginning, score, False, ranking_score)
            for beginning, score, ranking_score in zip(ids, board.scores[slot].tolist(), ranking, strict=True)
            if score > NEVER and not unmet(board.requests[slot].must, beginning)
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.ranking_score)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move what is kept outside tensors."""
        for old, new in zip(sources, targets, strict=True):
            self.ended[new], self.counts[new] = self.ended[old], self.counts[old]
