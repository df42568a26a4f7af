"""The numbers of rows and positions that micro-batches have: few, because kernels are made for each product of them.

On a CPU oneDNN takes and keeps some 13 MB for each, of `tiny` already. So numbers are multiples of an eighth of
themselves, of the power of two below them more exactly, and there are 8 between one power of two and the next.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

LENGTH_MULTIPLE = 4
"""Exact lengths made a CPU's training step a tenth slower, at 6 % less padding."""
EIGHTH_BITS = 3

Number = TypeVar("Number", int, np.ndarray)


def padded_length(length: Number) -> Number:
    """Return the length to which sides are padded in a micro-batch."""
    step = np.maximum(LENGTH_MULTIPLE, eighth(length))
    return like(length, -(-length // step) * step)


def round_down(number: Number) -> Number:
    """Return the next number of the few that is not larger: of rows, or of positions in a packed row."""
    return like(number, number // eighth(number) * eighth(number))


def eighth(number: Number) -> np.ndarray:
    """Return an eighth of the power of two that is not above a number, and 1 at least."""
    bits = np.frexp(number)[1]
    return np.left_shift(1, np.maximum(bits - 1 - EIGHTH_BITS, 0))


def like(number: Number, found: np.ndarray) -> Number:
    """Return what was found as the number came: whole, or an array."""
    return found if isinstance(number, np.ndarray) else int(found)  # type: ignore[return-value]
