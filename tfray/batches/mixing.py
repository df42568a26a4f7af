"""Mixing of corpora: how often each pair is seen, and which pairs of a shard an epoch takes.

A shard's pairs stand in an endless sequence that goes through them round after round. Epoch e takes
the positions from round(e x repeats x pairs) on, up to where epoch e + 1 begins. So over any number
of epochs a pair is seen floor or ceil of repeats x epochs times, and what an epoch takes follows from
its number alone. NumPy only.

    repeats 0.4 of 10 pairs    |0 1 2 3|4 5 6 7|8 9 0 1|2 3 4 5|...
    epoch                       0       1       2       3
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

SEQUENCE = 3
"""Sets the seeds of the shards' sequences apart from those of pools, steps and BPE dropout."""


class Portion(NamedTuple):
    """A shard's part in the mixture."""

    pairs: int
    repeats: float = 1.0
    """Times each of its pairs is seen in an epoch."""
    corpus: str = ""


class Draw(NamedTuple):
    """What a pool takes of a shard: positions start to stop of its endless sequence."""

    shard: int
    start: int
    stop: int

    @property
    def pairs(self) -> int:
        return self.stop - self.start


def corpus_repeats(pairs: dict[str, int], weights: dict[str, float], temperature: float) -> dict[str, float]:
    """Return the times each corpus' pairs are seen in an epoch: its weight, by what temperature makes of its size.

    A corpus of n pairs counts as n ^ (1 / temperature), in an epoch that is as large as at temperature 1.
    """
    largest, total = max(pairs.values()), sum(pairs.values())
    # Sizes relative to the largest: a low temperature's powers would overflow.
    counts = {name: (count / largest) ** (1 / temperature) for name, count in pairs.items()}
    scale = total / sum(counts.values())
    factors = {name: counts[name] * scale / count if temperature != 1 else 1.0 for name, count in pairs.items()}
    # Twelve digits: the last bits of a power are not the same on every machine, and 1 must be 1.
    return {name: float(f"{weights[name] * factor:.12g}") for name, factor in factors.items()}


def draw_epoch(portions: list[Portion], epoch: int) -> list[Draw]:
    """Return what an epoch takes of each shard; more than the whole shard is cut into several draws."""
    draws = []
    for shard, portion in enumerate(portions):
        start, stop = first_position(portion, epoch), first_position(portion, epoch + 1)
        parts = -(-(stop - start) // portion.pairs)
        bounds = [start + part * (stop - start) // parts for part in range(parts + 1)] if parts else []
        draws += [Draw(shard, *ends) for ends in itertools.pairwise(bounds)]
    return draws


def first_position(portion: Portion, epoch: int) -> int:
    """Return where an epoch begins in a shard's endless sequence."""
    # Halves go up: with round()'s halves to even, a shard of one pair an epoch could miss one.
    return math.floor(epoch * (portion.repeats * portion.pairs) + 0.5)


def fewest_pairs(portions: list[Portion]) -> int:
    """Return how many pairs every epoch has at least."""
    return max(1, sum(math.floor(portion.repeats * portion.pairs) for portion in portions))


def drawn_rows(draw: Draw, portion: Portion, seed: int) -> np.ndarray:
    """Return the rows of its shard that a draw takes, none of them twice."""
    rows = np.arange(draw.start, draw.stop) % portion.pairs
    if portion.repeats == 1:
        return rows  # all of them, in the order of the file
    # A part of the file as it stands would be a part of one topic: the sequence is shuffled, once for all epochs.
    return np.random.default_rng([seed, draw.shard, 0, SEQUENCE]).permutation(portion.pairs)[rows]


def interleave(pairs: np.ndarray, corpora: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a random order of draws in which any stretch holds all corpora in about their proportions.

    Each corpus' draws are shuffled and laid out over the whole length; of one corpus, that is the shuffle.
    """
    order, shift = random.permutation(len(pairs)), random.random(len(pairs))
    place = np.empty(len(pairs))
    for corpus in np.unique(corpora):
        own = order[corpora[order] == corpus]
        ends = np.cumsum(pairs[own])
        place[own] = (ends - shift[own] * pairs[own]) / ends[-1]
    return order[np.argsort(place[order], kind="stable")]
