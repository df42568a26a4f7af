"""Paths, URIs and web addresses alike: what is there, and which files are meant."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs

from tfray.errors import InputError

Result = TypeVar("Result")
GLOB_CHARACTERS = "*?["
TRIES = 3  # to read from another machine
FIRST_PAUSE = 0.5  # seconds


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


def base_name(path: str) -> str:
    """Return the last part of a place."""
    return path.partition("?")[0].rpartition("/")[2]


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
    return FIRST_PAUSE * 2.0 ** (failures - 1)


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
