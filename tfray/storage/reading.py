"""Files as bytes, text and JSON; what breaks off on another machine is read on from where it broke."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pyarrow as pa

from tfray.storage.places import TRIES, filesystem, is_remote, pause, retried

CHUNK_BYTES = 1 << 20
COMPRESSED_BYTES = 64 << 10  # less, for what is read with a damaged place is lost with it
READ_ERRORS = (OSError, EOFError, pa.ArrowException)  # what a missing or damaged file raises


def open_input(path: str) -> pa.NativeFile:
    """Return a file opened for random access."""
    fs, inner = filesystem(path)
    return retried(path, lambda: fs.open_input_file(inner))


def open_stream(path: str, compression: str | None = None) -> pa.NativeFile:
    """Return a file opened for reading its uncompressed bytes from the start."""
    fs, inner = filesystem(path)
    return retried(path, lambda: fs.open_input_stream(inner, compression=compression))


def read_chunks(path: str, compression: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield a file's uncompressed bytes from start to stop (default: its end); a broken connection is made anew."""
    position, failures = start, 0
    while True:
        try:
            with open_stream(path, compression) if compression else open_input(path) as file:
                advance(file, position, compression)
                size = COMPRESSED_BYTES if compression else CHUNK_BYTES
                while chunk := file.read(size if stop is None else min(size, stop - position)):
                    position, failures = position + len(chunk), 0
                    yield chunk
                return
        except OSError:
            failures += 1
            if failures == TRIES or not is_remote(path):
                raise
            time.sleep(pause(failures))


def advance(file: pa.NativeFile, position: int, compression: str | None) -> None:
    """Move an open file to a position of its uncompressed bytes."""
    if not compression:
        file.seek(position)
        return
    while position > 0 and (skipped := file.read(min(position, CHUNK_BYTES))):
        position -= len(skipped)


def read_bytes(path: str) -> bytes:
    """Return a whole file."""
    return b"".join(read_chunks(path))


def read_text(path: str) -> str:
    """Return a whole file as text."""
    return read_bytes(path).decode("utf-8")


def read_json(path: str) -> dict:
    """Return a JSON file's object."""
    return json.loads(read_text(path))
