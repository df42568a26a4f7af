"""The data order as a pure function: lengths -> steps x lanes of micro-batches. NumPy only.

A pool is what an epoch draws of several shards, shuffled together. Inside it, examples sorted by length are cut into
micro-batches of at most `max_tokens` padded tokens, `lanes` neighbours make a step, and the steps
are shuffled. Nothing here knows the number of workers, so the order cannot depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfray.batches.lengths import padded_length, round_down
from tfray.batches.mixing import Draw, Portion, draw_epoch, interleave
from tfray.batches.packing import Widths, first_fit, pack_pool, row_widths
from tfray.config import BatchesConfig

Step = list[np.ndarray]
"""The example numbers (within the pool) of each lane's micro-batch."""


@dataclass(frozen=True)
class Pool:
    """What is drawn of several shards and shuffled together."""

    index: int
    draws: tuple[Draw, ...]


def plan_pools(portions: list[Portion], config: BatchesConfig, epoch: int) -> list[Pool]:
    """Return an epoch's pools over shards with these parts in the mixture.

    What is drawn of the shards is shuffled by (seed, epoch), the corpora interleaved, and gathered
    until a pool holds `pool_examples`; a pool exceeds that by less than its last shard.
    """
    draws = draw_epoch(portions, epoch)
    sizes = np.array([draw.pairs for draw in draws], dtype=np.int64)
    corpora = np.array([portions[draw.shard].corpus for draw in draws])
    order = interleave(sizes, corpora, np.random.default_rng([config.seed, epoch]))
    pools: list[Pool] = []
    gathered: list[Draw] = []
    pairs = 0
    for position, number in enumerate(order):
        gathered.append(draws[number])
        pairs += draws[number].pairs
        if pairs >= config.pool_examples or position == len(order) - 1:
            pools.append(Pool(len(pools), tuple(gathered)))
            gathered, pairs = [], 0
    return pools


def plan_pool(
    source_lengths: np.ndarray, target_lengths: np.ndarray, config: BatchesConfig, epoch: int, pool: int
) -> list[Step]:
    """Return a pool's steps in their order; every example is in at least one micro-batch."""
    random = np.random.default_rng([config.seed, epoch, pool])
    cut = pack_pool if config.packing else cut_pool
    micro_batches = cut(source_lengths, target_lengths, config, random)
    lanes = config.lanes
    # The remainder is the pool's longest examples (packed: any); dropping it would drop exactly those, so repeat.
    missing = -len(micro_batches) % lanes
    micro_batches += [micro_batches[-1 - i % len(micro_batches)] for i in range(missing)]
    steps = [micro_batches[i : i + lanes] for i in range(0, len(micro_batches), lanes)]
    return [steps[i] for i in random.permutation(len(steps))]


def cut_pool(
    source_lengths: np.ndarray, target_lengths: np.ndarray, config: BatchesConfig, random: np.random.Generator
) -> list[np.ndarray]:
    """Return a pool's micro-batches of examples of about the same length, at most max_tokens wide and long."""
    source, target = padded_length(source_lengths), padded_length(target_lengths)
    order = sort_by_length(source, target, random)
    longest = np.maximum(source, target)[order]
    return [order[start:stop] for start, stop in cut_by_tokens(longest, config.max_tokens)]


def sort_by_length(source_lengths: np.ndarray, target_lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return example numbers by longer side, then by source minus target; equals in random order."""
    shuffled = random.permutation(len(source_lengths))
    source, target = source_lengths[shuffled], target_lengths[shuffled]
    keys = (source - target, np.maximum(source, target))  # the last key is the first to sort by
    return shuffled[np.lexsort(keys)]


def cut_by_tokens(longest: np.ndarray, max_tokens: int) -> list[tuple[int, int]]:
    """Return ranges of rows whose padded size, rows x longest, is at most max_tokens; of few numbers of rows.

    `longest` ascends, so a range's size is its last row's length times its rows. A row that is
    longer than max_tokens stands alone.
    """
    ranges = []
    start = 0
    while start < len(longest):
        candidates = longest[start : start + max(1, max_tokens // int(longest[start]))]
        sizes = candidates.astype(np.int64) * np.arange(1, len(candidates) + 1)  # ascend too
        fitting = max(1, int((sizes <= max_tokens).sum()))
        stop = start + (fitting if start + fitting == len(longest) else round_down(fitting))
        ranges.append((start, stop))
        start = stop
    return ranges


def most_pairs(config: BatchesConfig, max_length: int) -> int:
    """Return how many pairs a step can hold: each has a token on either side, and a side of a micro-batch has places
    for max_tokens, or for the longest pair."""
    return config.lanes * max(config.max_tokens, padded_length(max_length))


class Shape(NamedTuple):
    """A padded micro-batch."""

    rows: int
    source: int
    target: int

    @property
    def tokens(self) -> int:
        """Positions on both sides, padding included."""
        return self.rows * (self.source + self.target)


def shapes_of(
    source_lengths: np.ndarray, target_lengths: np.ndarray, steps: list[Step], config: BatchesConfig
) -> list[Shape]:
    """Return the shapes of a pool's micro-batches, step by step and lane by lane."""
    widths = row_widths(source_lengths, target_lengths, config.max_tokens) if config.packing else None
    return [shape_of(source_lengths[rows], target_lengths[rows], widths) for step in steps for rows in step]


def shape_of(source: np.ndarray, target: np.ndarray, widths: Widths | None) -> Shape:
    """Return the shape of a micro-batch of pairs with these lengths; with `widths`, of one whose pairs share rows."""
    rows = np.arange(len(source)) if widths is None else first_fit(source, target, widths)
    longest = [padded_length(int(np.bincount(rows, side).max())) for side in (source, target)]
    return Shape(int(rows.max()) + 1, *longest)
