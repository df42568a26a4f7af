"""What a process computes on, in which arithmetic, and how a CPU's libraries are set up for it."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

GLIBC_MMAP_THRESHOLD, GLIBC_TRIM_THRESHOLD = -3, -1  # malloc.h
KEPT_KERNELS = 8192


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return bf16 or fp32; 'auto' takes bf16 where the device multiplies matrices faster in it."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """Return a type's name, as torch has it: bfloat16, float32."""
    return str(dtype).removeprefix("torch.")


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether a device has bf16 matrix units."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def prepare_cpu(threads: int) -> None:
    """Set up this process for steps of ever changing shapes on so many threads."""
    torch.set_num_threads(threads)
    # oneDNN compiles a kernel for each shape and keeps 1,024; a step needs some 50 for each shape.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_KERNELS))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep freed pages between steps, in place of asking the system for them anew."""
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(GLIBC_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
            mallopt(GLIBC_TRIM_THRESHOLD, 2**31 - 1)
