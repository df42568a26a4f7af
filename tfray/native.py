"""C kernels, compiled by the system's C compiler at their first use, or not at all: torch then does the same work.

TFRAY_NATIVE=0 switches them off. Kernels with OpenMP share torch's own threads: its runtime is in the process before
they are loaded, so they are linked with none of their own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)

SHARED = Path(__file__).with_name("kernels.h")
"""What kernels include, whichever they are."""
FLAGS = [
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp-simd", "-fno-math-errno"),
    # Without traps, whose order no one looks at, choices become selections: on AVX2 no exponential is in vectors else.
    *("-ffp-contract=fast", "-fno-trapping-math", "-fPIC"),
]


def compiled_library(sources: list[Path], names: list[str], *flags: str) -> ctypes.CDLL | None:
    """Return the library of the first source, the others being what it includes; None where it cannot be had."""
    if os.environ.get("TFRAY_NATIVE", "1") == "0":
        return None
    for folder in cache_folders():
        try:
            library = ctypes.CDLL(str(build(folder, sources, [*FLAGS, *flags])))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            # No compiler; or no room in this folder, nothing in it may be executed, or what stands there is damaged.
            logger.info("%s is not used from %s (no C compiler?): %s", sources[0].name, folder, error)
            continue
        for name in names:
            getattr(library, name).restype = None
        return library
    return None


def build(folder: Path, sources: list[Path], flags: list[str]) -> Path:
    """Return the shared library, compiled now or before for this source, compiler flags and processor."""
    made_from = [*(source.read_text() for source in sources), *flags, processor()]
    key = hashlib.sha256(" ".join(made_from).encode()).hexdigest()[:16]
    library = folder / f"{sources[0].stem}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            compiler = shlex.split(os.environ.get("CC") or "cc")  # "ccache gcc"
            parts = Path(work) / "kernels.o", Path(work) / library.name
            for command in (
                [*compiler, *flags, "-c", str(sources[0]), "-o", str(parts[0])],
                [*compiler, "-shared", str(parts[0]), "-o", str(parts[1]), "-lm"],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=120)
            with parts[1].open("rb") as made:
                os.fsync(made.fileno())  # what a power cut leaves under the last name is whole: else it is a crash
            os.replace(parts[1], library)  # several processes may build at the same time
    return library


def cache_folders() -> Iterator[Path]:
    """Yield where libraries may be kept: the user's cache, and a folder in the temporary one that is this user's alone;
    where neither can be written to, a new one."""
    given, name = os.environ.get("XDG_CACHE_HOME", ""), f"tfray-{os.getuid()}"
    cache = given if os.path.isabs(given) else os.path.expanduser("~/.cache")  # which stays as it is without a home
    found = False
    for folder in ([Path(cache, "tfray")] if os.path.isabs(cache) else []) + [Path(tempfile.gettempdir(), name)]:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_own = os.access(folder, os.W_OK) and folder.lstat().st_uid == os.getuid()
        except OSError:
            continue
        if is_own:
            found = True
            yield folder
    if not found:
        yield Path(tempfile.mkdtemp(prefix="tfray-"))


def processor() -> str:
    """Return what tells processors apart that need other code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


Argument = Tensor | int | float | ctypes.c_void_p | ctypes.c_int64 | None
"""What a kernel is called with: memory, numbers, or nothing where it takes memory."""


def call(function: Any, *arguments: Argument) -> None:
    """Call a kernel; tensors must be contiguous where the kernel says so, and live."""
    if function.argtypes is None:
        function.argtypes = [type_of(argument) for argument in arguments]
    function(*[argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments])


def prepared(function: Any, *arguments: Argument) -> Callable[[], None]:
    """Return what makes a call again and again, over the same tensors, which must live; what stands in ctypes' objects
    is read anew each time."""
    ready = []
    for argument in arguments:
        value = argument.data_ptr() if isinstance(argument, Tensor) else argument
        kind = type_of(argument)
        ready.append(value if isinstance(value, kind) else kind(value))
    if function.argtypes is None:
        function.argtypes = [type(each) for each in ready]
    return functools.partial(function, *ready)


def type_of(argument: Argument) -> type:
    """Return what a kernel takes an argument as; None is a tensor that there is not."""
    if argument is None or isinstance(argument, Tensor | ctypes.c_void_p):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int64
