"""What people read where a checkpoint cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tfray import storage
from tfray.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def refusing(folder: str, wanted: int) -> Iterator[None]:
    """Turn what a place answers to writing so many bytes into an InputError with the remedy."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(refusal(folder, wanted, error)) from error


def refusal(folder: str, wanted: int, error: Exception) -> str:
    """Return the message: place, bytes wanted, bytes free, remedy."""
    # An object is written aside, on a local disk, before it is put in its place.
    disk = tempfile.gettempdir() if storage.is_remote(folder) else folder
    if getattr(error, "errno", None) in FULL:
        return (
            f"checkpoint {folder!r} cannot be written: {disk!r} is full ({error}), {wanted:,} bytes are wanted by one "
            f"worker, {free_bytes(disk):,} are free; the checkpoints before it are intact: make room (or keep fewer "
            "with training.keep_checkpoints), and the same command goes on from the last of them"
        )
    return (
        f"checkpoint {folder!r} cannot be written: {error}; the checkpoints before it are intact: see to it that "
        "'out' can be written, and the same command goes on from the last of them"
    )


def free_bytes(folder: str) -> int:
    """Return the free bytes of the disk that holds a folder, or would."""
    place = Path(folder)
    while not os.path.exists(place):
        place = place.parent
    return shutil.disk_usage(place).free
