"""The kernels of kernels.c, compiled by the system's C compiler at their first use, or not at all.

They serve a CPU process with one thread, as the jobs run it. Without a compiler, with more threads or on
another device, torch does the same work: more slowly, and equal up to the last bits.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "attend.h")]
FLAGS = [
    *("-O3", "-march=native", "-mprefer-vector-width=256", "-fopenmp-simd", "-fno-math-errno"),
    *("-ffp-contract=fast", "-shared", "-fPIC"),
]
NAMES = [
    *("quantize_rows", "finish_rows", "normalize_rows", "log_softmax_rows", "best_tokens"),
    *("attend_source", "attend_target", "attend_past", "attend_past_half", "attend_memory", "attend_memory_half"),
]


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had; TFRAY_NATIVE=0 switches them off."""
    if os.environ.get("TFRAY_NATIVE", "1") == "0":
        return None
    try:
        return load(build())
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("kernels.c is not used (no C compiler?): %s", error)
        return None


def build() -> Path:
    """Return the shared library, compiled now or before for this source, compiler flags and processor."""
    made_from = [*(source.read_text() for source in SOURCES), *FLAGS, processor()]
    key = hashlib.sha256(" ".join(made_from).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tfray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="tfray-"))
    library = folder / f"kernels-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / library.name
            compiler = os.environ.get("CC", "cc")
            command = [compiler, *FLAGS, str(SOURCES[0]), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            os.replace(made, library)  # several processes may build at the same time
    return library


def processor() -> str:
    """Return what tells processors apart that need other code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in NAMES:
        getattr(library, name).restype = None
    return library


def kernels(device: torch.device) -> ctypes.CDLL | None:
    """Return the kernels where this process can use them."""
    return compiled() if device.type == "cpu" and torch.get_num_threads() == 1 else None


def call(function: object, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel; tensors must be contiguous where the kernel says so, and live."""
    function(*[pass_on(argument) for argument in arguments])  # type: ignore[operator]


def pass_on(argument: Tensor | int | float | None) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return None if argument is None else ctypes.c_int64(argument)
