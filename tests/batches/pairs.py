"""Lengths of pairs, and their plan."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tfray.batches.plan import Step, plan_pool
from tfray.config import BatchesConfig

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=150)


def sides(lengths: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.array(lengths).T
    return source, target


def plan(lengths: list[tuple[int, int]], config: BatchesConfig, epoch: int = 0, pool: int = 0) -> list[Step]:
    return plan_pool(*sides(lengths), config, epoch, pool)
