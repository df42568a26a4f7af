"""The lengths to which rows are padded."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

LENGTH_MULTIPLE = 4
"""Kernels are compiled for each shape: exact lengths made a CPU's training step a tenth slower, at 6 % less padding."""

Length = TypeVar("Length", int, np.ndarray)


def padded_length(length: Length) -> Length:
    """Return the length to which sides are padded in a micro-batch: the next multiple of LENGTH_MULTIPLE."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
