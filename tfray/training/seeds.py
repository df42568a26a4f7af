"""Seeds of what training draws: every number of them, of whatever size, leads to another one of 64 bits.

They are mixed, since torch's generator on a CPU looks at the low 32 bits of a seed alone.
"""

from __future__ import annotations

import numpy as np

WEIGHTS, DROPOUT = 1, 2
"""Set the seeds of the two apart."""


def weights_seed(seed: int) -> int:
    """Return the seed of a training's first weights."""
    return mix(WEIGHTS, seed)


def dropout_seed(seed: int, step: int, lane: int) -> int:
    """Return the seed of a micro-batch's dropout: it does not depend on the worker."""
    return mix(DROPOUT, step, lane, seed)  # the seed last: it alone may be larger than 32 bits


def mix(*numbers: int) -> int:
    """Return 64 random bits that follow from numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
