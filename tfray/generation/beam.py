"""Beam search: the beam_size most probable beginnings of each row, extended token by token.

A hypothesis that ends is ranked by log-probability / length^length_penalty. A row stops when
beam_size hypotheses have ended, when no open beginning can rank above the best of them, or at its
longest length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.cache import DecoderCache
from tfray.generation.hypothesis import Hypothesis, next_log_probs
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


class Beam:
    """One row's search: beginnings still open, and the best hypothesis that has ended."""

    def __init__(self, limit: int, config: GenerationConfig) -> None:
        self.limit, self.config = limit, config
        self.open: list[tuple[list[int], float]] = [([], 0.0)] * config.beam_size
        self.best: Hypothesis | None = None
        self.best_rank = float("-inf")
        self.ended = 0

    def rank(self, score: float, length: int) -> float:
        """Return a score normalized by a length that counts eos."""
        return score / length**self.config.length_penalty

    def offer(self, ids: list[int], score: float, is_finished: bool) -> None:
        """Take a hypothesis that ended, if it ranks above the best so far."""
        self.ended += 1
        rank = self.rank(score, len(ids) + is_finished)
        if rank > self.best_rank:
            self.best, self.best_rank = Hypothesis(ids, score, is_finished), rank

    def extend(self, candidates: list[Candidate]) -> list[int]:
        """Extend the beam by the best candidates; return the old places of the new beginnings."""
        beginnings, places = [], []
        for rank, candidate in enumerate(candidates):
            ids = self.open[candidate.place][0]
            if candidate.token == EOS_ID:
                # An end counts only among the beam_size best, as any other candidate would; impossible
                # ones fill up a beam that is wider than the vocabulary.
                if rank < self.config.beam_size and candidate.score > float("-inf"):
                    self.offer(ids, candidate.score, is_finished=True)
            elif len(beginnings) < self.config.beam_size:
                beginnings.append(([*ids, candidate.token], candidate.score))
                places.append(candidate.place)
        self.open = beginnings
        return places

    @property
    def is_done(self) -> bool:
        """True when enough have ended, or nothing that is open can rank above the best.

        An open beginning's score only falls; the longest length gives the most favourable rank.
        """
        if self.ended >= self.config.beam_size or len(self.open[0][0]) >= self.limit:
            return True
        return self.best is not None and self.rank(self.open[0][1], self.limit) <= self.best_rank

    @property
    def result(self) -> Hypothesis:
        """The best hypothesis; the best beginning, cut at the limit, where none has ended."""
        if self.best is None:
            self.offer(*self.open[0], is_finished=False)
        assert self.best is not None
        return self.best


class Candidate(NamedTuple):
    """A beginning extended by a token."""

    place: int
    token: int
    score: float


def beam_search(
    model: Transformer, source_ids: Tensor, limits: list[int], config: GenerationConfig
) -> list[Hypothesis]:
    """Return the best hypothesis of each row, of at most limits[row] tokens with eos."""
    device, size = source_ids.device, config.beam_size
    memory = model.encode(source_ids)
    cache = DecoderCache(model.project_memory(memory), memory.mask)
    beams = [Beam(limit, config) for limit in limits]
    active = list(range(len(beams)))
    last = torch.full((len(beams) * size,), BOS_ID, device=device)
    # All beginnings are alike at first: only one of each row may go on.
    scores = torch.tensor([0.0, *[float("-inf")] * (size - 1)], device=device).repeat(len(beams), 1)
    while active:
        logits = model.decode_next(last, cache.memory_keys_values, cache.memory_mask, cache.past)
        candidates = best_candidates(next_log_probs(logits, PAD_ID, BOS_ID), scores)
        going_on, kept = [], []
        for place, (row, row_candidates) in enumerate(zip(active, candidates, strict=True)):
            places = beams[row].extend(row_candidates)
            if not beams[row].is_done:
                going_on.append(place)
                kept += [place * size + old for old in places]
        if len(going_on) < len(active):
            cache.select_rows(torch.tensor(going_on, dtype=torch.long, device=device))
        active = [active[place] for place in going_on]
        cache.select_hypotheses(torch.tensor(kept, dtype=torch.long, device=device))
        opened = [beginning for row in active for beginning in beams[row].open]
        last = torch.tensor([ids[-1] for ids, _ in opened], dtype=torch.long, device=device)
        scores = torch.tensor([score for _, score in opened], device=device).view(-1, size)
    return [beam.result for beam in beams]


def best_candidates(log_probs: Tensor, scores: Tensor) -> list[list[Candidate]]:
    """Return each row's 2 x beam_size best extensions, best first.

    Twice the beam, so that enough are left when all that end are taken out.
    """
    rows, size = scores.shape
    vocab = log_probs.shape[-1]
    totals = (scores.view(-1, 1) + log_probs).view(rows, size * vocab)
    best = totals.topk(min(2 * size, totals.shape[1]), dim=-1)
    return [
        [Candidate(index // vocab, index % vocab, score) for index, score in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
