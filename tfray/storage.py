"""Places: local folders and object stores alike, atomic publishing, fingerprints.

A place is a path, or a URI that pyarrow knows (`s3://bucket/folder`, `gs://...`); input may be a web
address (`https://...`). What is published
appears whole or not at all: by a rename locally, by a single put in an object store.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from tfray.errors import InputError

Result = TypeVar("Result")
GLOB_CHARACTERS = "*?["
CHUNK_BYTES = 1 << 20
COMPRESSED_BYTES = 64 << 10  # less, for what is read with a damaged place is lost with it
READ_ERRORS = (OSError, EOFError, pa.ArrowException)  # what a missing or damaged file raises
TRIES = 3  # to read from another machine


def is_remote(path: str) -> bool:
    """Say whether a path is a URI of an object store or a web address."""
    return "://" in path and not path.startswith("file://")


def is_web(path: str) -> bool:
    """Say whether a path is a web address."""
    return path.startswith(("http://", "https://"))


def filesystem(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a place and the path inside it."""
    if is_web(path):
        from tfray import web  # takes a while to import, and few need it

        return web.web_filesystem(), web.encoded(path)
    if is_remote(path):
        try:
            return pyarrow.fs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path!r} is not a place that can be reached: {error}") from error
    return pyarrow.fs.LocalFileSystem(), absolute(path)


def absolute(path: str) -> str:
    """Return a local path made absolute (workers have another working directory); URIs as they are."""
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(folder: str, name: str) -> str:
    """Return the place of a name in a folder; a URI keeps its options (`?endpoint_override=...`)."""
    base, mark, options = folder.partition("?") if is_remote(folder) else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def exists(path: str) -> bool:
    """Say whether there is a file or folder."""
    return file_info(path).type != pyarrow.fs.FileType.NotFound


def file_size(path: str) -> int:
    """Return a file's size in bytes."""
    return file_info(path).size


def file_info(path: str) -> pyarrow.fs.FileInfo:
    """Return a place's type and size."""
    fs, inner = filesystem(path)
    return retried(path, lambda: fs.get_file_info(inner))


def retried(path: str, read: Callable[[], Result]) -> Result:
    """Return what a read gives; on another machine, what fails is tried again a little later."""
    for failures in range(1, TRIES):
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if not is_remote(path):
                raise
            time.sleep(pause(failures))
    return read()


def pause(failures: int) -> float:
    """Return the seconds to wait after so many failures."""
    return 2.0**failures / 4


def list_files(folder: str) -> list[str]:
    """Return the full paths of the files directly in a folder, sorted; none if it does not exist."""
    fs, inner = filesystem(folder)
    infos = fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
    return [join(folder, info.base_name) for info in sorted(infos, key=lambda info: info.path) if info.is_file]


def list_folders(folder: str) -> list[str]:
    """Return the full paths of the folders directly in a folder, sorted; none if it does not exist."""
    fs, inner = filesystem(folder)
    infos = fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
    found = [info for info in infos if info.type == pyarrow.fs.FileType.Directory]
    return [join(folder, info.base_name) for info in sorted(found, key=lambda info: info.path)]


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


def expand(pattern: str) -> list[str]:
    """Return the files behind a path, glob or folder, sorted; hidden and `_`-files of folders are left out.

    Raises InputError where there is none.
    """
    pattern = absolute(pattern)
    if is_web(pattern):
        return [expand_web(pattern)]
    fs, inner = filesystem(pattern)
    info = file_info(pattern)
    if info.is_file:
        found, rule = [inner], ""
    elif info.type == pyarrow.fs.FileType.Directory:
        found, rule = walk(fs, inner), "is a folder without files"
    elif any(character in inner for character in GLOB_CHARACTERS):
        stem = inner[: min(inner.index(c) for c in GLOB_CHARACTERS if c in inner)].rpartition("/")[0]
        found = [path for path in walk(fs, stem) if matches(path.split("/"), inner.split("/"))]
        rule = "matches no file"
    else:
        found, rule = [], "does not exist"
    if not found:
        raise InputError(f"input {pattern!r} {rule}; check the path")
    return sorted(found) if not is_remote(pattern) else [remote_path(pattern, path) for path in sorted(found)]


def expand_web(address: str) -> str:
    """Return a web address behind which there is a file; raises InputError where there is none."""
    if any(character in address for character in "*["):
        raise InputError(f"input {address!r} is a glob, and web servers do not list files; name each file")
    try:
        if not exists(address):
            raise InputError(f"input {address!r} does not exist; check the address")
    except OSError as error:
        raise InputError(f"input {address!r} cannot be read: {error}") from error
    return address


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Say whether a path matches a glob, part by part: `*` stays inside a folder, `**` goes into any depth."""
    if pattern[:1] == ["**"]:
        return pattern == ["**"] or matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    if not pattern or not parts:
        return parts == pattern
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def walk(fs: pyarrow.fs.FileSystem, folder: str) -> list[str]:
    """Return all visible files below a folder; none if there is no such folder."""
    if fs.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
        return []
    infos = fs.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    below = len(folder)
    return [
        info.path
        for info in infos
        if info.is_file and not any(part.startswith((".", "_")) for part in info.path[below:].split("/"))
    ]


def remote_path(uri: str, inner: str) -> str:
    """Return the URI of a path inside the file system of another URI."""
    scheme, _, rest = uri.partition("://")
    _, mark, options = rest.partition("?")
    return f"{scheme}://{inner}{mark}{options}"


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
            self.file.close()
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
            with self.fs.open_output_stream(self.final) as stream:
                shutil.copyfileobj(self.file, stream, 8 << 20)


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


def remove(path: str) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pyarrow.fs.FileType.Directory:
        fs.delete_dir(inner)
    elif kind == pyarrow.fs.FileType.File:
        fs.delete_file(inner)


def check_writable(folder: str) -> None:
    """Raise InputError unless files can be written in a folder (made if need be)."""
    if is_web(folder):
        raise InputError(f"out={folder!r} cannot be written: web addresses can only be read; choose another folder")
    probe = join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        publish_bytes(probe, b"")
        remove(probe)
    except OSError as error:
        raise InputError(f"out={folder!r} cannot be written: {error}; choose another folder") from error


def fingerprint(value: object) -> str:
    """Return 16 hexadecimal digits that follow from a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: str) -> str:
    """Return 16 hexadecimal digits that follow from a file's content."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def file_identity(path: str) -> list[object]:
    """Return what tells a file apart without reading it: path, size, time of change (on the web: ETag or date)."""
    if is_web(path):
        from tfray import web

        return [path, *retried(path, lambda: web.identity(web.encoded(path)))]
    info = file_info(path)
    return [path, info.size, info.mtime_ns]
