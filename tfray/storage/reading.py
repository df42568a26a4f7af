"""Files as bytes, text and JSON; a read that fails is tried again where it broke off, on a new connection.

Input is read patiently, for about a minute. Where that does not help, StorageFailure says that it is the
storage that failed: what a format's reader says of the bytes that came is another thing, and of the file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import IO, cast

import pyarrow as pa

from tfray.storage.places import Result, filesystem, known, retried

CHUNK_BYTES = 1 << 20
COMPRESSED_BYTES = 64 << 10  # less, for what is read with a damaged place is read again, byte by byte
ARROW_BYTES = 64 << 10  # that Arrow takes of a compressed file at once
PATIENT_TRIES = 8  # to read; about a minute
READ_ERRORS = (OSError, EOFError, pa.ArrowException)  # what a missing or damaged file raises


def open_input(path: str) -> pa.NativeFile:
    """Return a file opened for random access."""
    fs, inner = filesystem(path)
    return retried(path, lambda: fs.open_input_file(inner))


def open_patiently(path: str) -> pa.NativeFile:
    """Return a file opened for random access, of which each read has a minute's time.

    Raises StorageFailure, also while it is read.
    """
    return as_native(PatientFile(path))


def read_chunks(path: str, compression: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield a file's uncompressed bytes from start to stop (default: its end); of a damaged one all before that."""
    position = start
    with contextlib.closing(PatientFile(path)) as raw:
        file = pa.CompressedInputStream(as_native(raw), compression) if compression else raw
        size = COMPRESSED_BYTES if compression else CHUNK_BYTES
        advance(file, start)
        taken = raw.position
        try:
            while chunk := file.read(size if stop is None else min(size, stop - position)):
                position, taken = position + len(chunk), raw.position
                yield chunk
        except READ_ERRORS:
            if compression:
                yield from read_to_damage(path, compression, position, stop, max(0, taken - ARROW_BYTES))
            raise


def read_to_damage(path: str, compression: str, start: int, stop: int | None, sound: int) -> Iterator[bytes]:
    """Yield what a compressed file still gives from start on, until its damage; its first `sound` bytes have none.

    Those after them are uncompressed one by one: together with the damage, what is before it would be lost.
    """
    found = bytearray()
    with contextlib.closing(DrippingFile(path, sound)) as raw, contextlib.suppress(*READ_ERRORS):
        file = pa.CompressedInputStream(as_native(raw), compression)
        advance(file, start)
        while (stop is None or start + len(found) < stop) and (byte := file.read(1)):
            found += byte
    if found:
        yield bytes(found)


def advance(file: PatientFile | pa.NativeFile, position: int) -> None:
    """Move an open file to a position of its uncompressed bytes."""
    if isinstance(file, PatientFile):
        file.seek(position)
        return
    while position > 0 and (skipped := file.read(min(position, CHUNK_BYTES))):
        position -= len(skipped)


class PatientFile:
    """A file for reading that is opened again where a read fails."""

    def __init__(self, path: str) -> None:
        self.path, self.position = path, 0
        self.file: pa.NativeFile | None = None
        self.size = self.persist(lambda file: file.size())
        self.closed = False

    def persist(self, read: Callable[[pa.NativeFile], Result]) -> Result:
        """Return what a read gives; raises StorageFailure where it fails for too long."""

        def attempt() -> Result:
            try:
                self.file = self.file or open_input(self.path)
                return read(self.file)
            except OSError:
                self.file = None
                raise

        return known(self.path, lambda: retried(self.path, attempt, PATIENT_TRIES))

    def read(self, size: int = -1) -> bytes:
        position = self.position

        def read(file: pa.NativeFile) -> bytes:
            file.seek(position)
            return file.read(size if size >= 0 else None)

        data = self.persist(read)
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def close(self) -> None:
        self.closed = True
        if self.file is not None:
            self.file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


class DrippingFile(PatientFile):
    """A file that is given byte by byte after a position."""

    def __init__(self, path: str, sound: int) -> None:
        super().__init__(path)
        self.sound = sound

    def read(self, size: int = -1) -> bytes:
        return super().read(max(1, min(size, self.sound - self.position)))


def as_native(file: PatientFile) -> pa.NativeFile:
    """Return a file as pyarrow's readers take it."""
    return pa.PythonFile(cast("IO[bytes]", file), mode="r")


def read_bytes(path: str) -> bytes:
    """Return a whole file."""
    return b"".join(read_chunks(path))


def read_text(path: str) -> str:
    """Return a whole file as text."""
    return read_bytes(path).decode("utf-8")


def read_json(path: str) -> dict:
    """Return a JSON file's object."""
    return json.loads(read_text(path))
