"""The kernels of kernels.c.

They serve a CPU process with one thread, as the jobs run it. Without a compiler, with more threads or on
another device, torch does the same work: more slowly, and equal up to the last bits.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from tfray.native import SHARED, call, compiled_library, prepared

__all__ = ["call", "compiled", "kernels", "lanes", "page", "panel", "prepared", "products"]

SOURCES = [
    *(Path(__file__).with_name(name) for name in ("kernels.c", "attend.h", "panels.h", "products.h", "multiply.h")),
    SHARED,
]
NAMES = [
    *("multiply_float", "embed_tokens", "normalize_rows", "log_sums", "best_tokens"),
    *("attend_sequences", "attend_past", "attend_past_half", "attend_memory", "attend_memory_half"),
    *("keep_memory", "keep_memory_half"),
]


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    return compiled_library(SOURCES, NAMES)


def kernels(device: torch.device) -> ctypes.CDLL | None:
    """Return the kernels where this process can use them."""
    return compiled() if device.type == "cpu" and torch.get_num_threads() == 1 else None


@functools.cache
def lanes() -> int:
    """Return how many numbers the kernels work on at a time: 16, 8 or 4."""
    library = compiled()
    assert library is not None
    return int(library.lanes_of_a_register())


@functools.cache
def page() -> int:
    """Return how many positions of a target a page of the kernels' cache has."""
    library = compiled()
    assert library is not None
    return int(library.positions_of_a_page())


@functools.cache
def panel() -> int:
    """Return how many outputs a panel of the kernels' weights has: 32, 16 or 8."""
    library = compiled()
    assert library is not None
    return int(library.outputs_of_a_panel())


@functools.cache
def products_are_granted() -> bool:
    """Say whether the processor has products of halves or bytes, and the system lets this process use them."""
    library = compiled()
    return library is not None and hasattr(library, "products_are_granted") and bool(library.products_are_granted())


def products(device: torch.device) -> ctypes.CDLL | None:
    """Return the kernels where they have products of halves or bytes."""
    return kernels(device) if products_are_granted() else None
