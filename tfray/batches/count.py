"""How much there is to train on: an epoch's steps and target tokens, from the shards' length columns alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfray.batches.mixing import Draw, Portion, drawn_rows
from tfray.batches.plan import Pool, plan_pool, plan_pools
from tfray.batches.pool import PoolReader, mix_shards
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, read_lengths

logger = logging.getLogger(__name__)


class EpochCount(NamedTuple):
    """What the first epoch has; the others gather the shards into other pools, and can differ by a few steps."""

    steps: int
    target_tokens: int
    """Those of micro-batches that fill a last step, a second time, too: training counts them."""
    pools: int


def count_epoch(tokens: TokenFolder, config: BatchesConfig) -> EpochCount:
    """Return the counts of the first epoch, read and planned pool by pool, so that no more than one is in memory.

    BPE dropout makes pairs longer: by as much as it does those of the first pool.
    """
    counts = []
    first: Pool | None = None
    for pool, source, target in first_epoch(tokens, config):
        steps = plan_pool(source, target, config, 0, pool.index)
        seen = np.concatenate([rows for step in steps for rows in step])
        counts.append((len(steps), int(target[seen].sum()), 1))
        first = first or pool
    whole = EpochCount(*(sum(column) for column in zip(*counts, strict=True)))
    if config.bpe_dropout and first is not None:
        source, target = PoolReader(tokens, config).read(first, 0).lengths
        longer = len(plan_pool(source, target, config, 0, 0)) / counts[0][0]
        return whole._replace(steps=round(whole.steps * longer), target_tokens=round(whole.target_tokens * longer))
    return whole


def first_epoch(tokens: TokenFolder, config: BatchesConfig) -> Iterator[tuple[Pool, np.ndarray, np.ndarray]]:
    """Yield the first epoch's pools with the source and target lengths of their pairs, read when it is their turn."""
    paths, portions = tokens.paths("train"), mix_shards(tokens, config)
    for pool in plan_pools(portions, config, 0):
        drawn = [draw_lengths(paths[draw.shard], draw, portions[draw.shard], config.seed) for draw in pool.draws]
        source, target = (np.concatenate(side) for side in zip(*drawn, strict=True))
        yield pool, source, target


def draw_lengths(path: str, draw: Draw, portion: Portion, seed: int) -> list[np.ndarray]:
    """Return the source and target lengths of what is drawn of a shard."""
    rows = drawn_rows(draw, portion, seed)
    return [lengths[rows] for lengths in read_lengths(path)]


def log_mixture(portions: list[Portion]) -> None:
    """Say how often each corpus is seen, where that is not once an epoch."""
    pairs: Counter[str] = Counter()
    for portion in portions:
        pairs[portion.corpus] += portion.pairs
    repeats = {portion.corpus: portion.repeats for portion in portions}
    if any(times != 1 for times in repeats.values()):
        parts = (f"{name}: {pairs[name]:,} pairs x {times:.4g}" for name, times in repeats.items())
        logger.info("an epoch sees %s", "; ".join(parts))
