"""Files that appear whole or not at all: by a rename locally, by a single put in an object store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from tfray.errors import InputError, StorageFailure
from tfray.storage.places import absolute, base_name, exists, filesystem, is_remote, is_web, join
from tfray.storage.reading import read_text

WRITE_ERRORS = (OSError, StorageFailure)  # what a place raises that cannot be written
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}|\.probe-[0-9a-f]{32}")


class publish:  # noqa: N801 - reads as a verb: `with publish(path) as file`
    """Open a file that appears at its place, whole, when the block ends without an error."""

    def __init__(self, path: str) -> None:
        self.fs, self.final = filesystem(path)
        self.is_local = isinstance(self.fs, pyarrow.fs.LocalFileSystem)
        folder, _, name = self.final.rpartition("/")
        self.written = f"{folder}/.{name}.{uuid.uuid4().hex}"
        if self.is_local:
            self.fs.create_dir(folder, recursive=True)

    def __enter__(self) -> IO[bytes]:
        # pyarrow's streams to object stores publish what they have when they are garbage: write aside first.
        self.file = open(self.written, "wb") if self.is_local else tempfile.TemporaryFile()
        return self.file

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.put()
        finally:
            try:
                self.file.close()  # on a full disk it fails once more: what it still holds finds no room
            finally:
                if self.is_local:
                    Path(self.written).unlink(missing_ok=True)

    def put(self) -> None:
        """Bring what was written to its place."""
        self.file.flush()
        if self.is_local:
            os.fsync(self.file.fileno())
            os.replace(self.written, self.final)
        else:
            self.file.seek(0)
            with interrupts_wait(), self.fs.open_output_stream(self.final) as stream:
                shutil.copyfileobj(self.file, stream, 8 << 20)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM, which only the main thread hears, wait for the end of the block.

    Broken off, a stream to an object store puts what it has so far, or nothing, in the place of what was there.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    before: dict[signal.Signals, Any] = {}
    heard: list[int] = []
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.signal(number, lambda number, _: heard.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(heard):
            signal.raise_signal(number)


def is_temporary(path: str) -> bool:
    """Say whether a file is one that was not finished, or a probe: by its name, which nobody else gives."""
    return TEMPORARY.fullmatch(base_name(path)) is not None


def publish_bytes(path: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with publish(path) as file:
        file.write(data)


def publish_text(path: str, text: str) -> None:
    """Write a whole text file atomically."""
    publish_bytes(path, text.encode("utf-8"))


def publish_json(path: str, value: object) -> None:
    """Write a JSON file for people and programs atomically."""
    publish_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def publish_table(path: str, table: pa.Table) -> None:
    """Write a Parquet file (zstd) atomically."""
    with publish(path) as file:
        pq.write_table(table, file, compression="zstd")


def append_line(path: str, line: str) -> None:
    """Add a line to a small log; in an object store the whole log is put again."""
    if is_remote(path):
        publish_text(path, (read_text(path) if exists(path) else "") + line + "\n")
    else:
        with open(path, "a+b") as file:
            if file.tell() and not ends_with_newline(file):  # a kill cut the last line
                line = "\n" + line
            file.write(line.encode() + b"\n")


def ends_with_newline(file: IO[bytes]) -> bool:
    """Say whether the last byte of a file that is not empty is a line feed."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def remove(path: str) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pyarrow.fs.FileType.Directory:
        fs.delete_dir(inner)
    elif kind == pyarrow.fs.FileType.File:
        fs.delete_file(inner)


def copy(source: str, target: str) -> None:
    """Copy an object to another place of the same store; it appears there whole."""
    fs, inner = filesystem(source)
    fs.copy_file(inner, filesystem(target)[1])


def rename(source: str, target: str) -> None:
    """Give a local file or folder another name."""
    os.rename(source, target)


@contextlib.contextmanager
def writing(out: str) -> Iterator[None]:
    """Let what fails in the block because a folder cannot be written any more end in one clear message."""
    try:
        yield
    except ConnectionError:  # of the cluster
        raise
    except OSError as error:
        raise StorageFailure(
            f"out={out!r} cannot be written: {' '.join(str(error).split())}; make room, or see that it can be reached "
            "and written, then start the same command again: it goes on"
        ) from error


def check_writable(folder: str) -> None:
    """Raise InputError unless files can be written in a folder (made if need be)."""
    if is_web(folder):
        raise InputError(f"out={folder!r} cannot be written: web addresses can only be read; choose another folder")
    probe = join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        publish_bytes(probe, b"")
        remove(probe)
    except WRITE_ERRORS as error:
        raise InputError(f"out={folder!r} cannot be written: {error}; choose another folder") from error


def check_creatable(folder: str) -> None:
    """Raise InputError unless a folder could be made and written; nothing is left of the attempt."""
    place = absolute(folder)
    while not is_remote(place) and not os.path.lexists(place):
        place = os.path.dirname(place)
    check_writable(place)
