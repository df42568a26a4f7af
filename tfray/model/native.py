"""The kernels of kernels.c, for training on a CPU; None where torch has to do their work."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tfray.native import SHARED, call, compiled_library

SOURCES = [*(Path(__file__).with_name(name) for name in ("kernels.c", "rows.h")), SHARED]
KERNELS = ("loss_gradient", "twin_loss_gradient", "normalize", "normalize_backward", "attend", "attend_backward")
ENDINGS = {torch.float32: "", torch.bfloat16: "_half"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    names = [kernel + ending for kernel in KERNELS for ending in ENDINGS.values()]
    return compiled_library(SOURCES, names, "-fopenmp")


def find(name: str, states: Tensor) -> Callable[..., None] | None:
    """Return a kernel for states of this kind, to be called with the kernel's arguments but for the threads."""
    if torch.compiler.is_compiling():
        return None
    if states.device.type != "cpu" or states.dtype not in ENDINGS or library() is None:
        return None
    kernel = getattr(library(), name + ENDINGS[states.dtype])
    return lambda *arguments: call(kernel, *arguments, torch.get_num_threads())
