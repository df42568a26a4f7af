"""Paths, URIs and web addresses alike: what is there, and which files are meant."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs

from tfray.errors import InputError, StorageFailure

Result = TypeVar("Result")
GLOB_CHARACTERS = "*?["
TRIES = 3  # to read from another machine
FIRST_PAUSE = 0.5  # seconds
OPTIONS = re.compile(r"\?\w+=[^?]*$")  # of a URI; another question mark belongs to a glob
ALLOWED = "/:~!$&'()*+,;=@"  # beside letters and digits, as they are in a URI
LASTING = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


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
            # It asks for a bucket's region, and that may fail as a read does.
            return retried(path, lambda: pyarrow.fs.FileSystem.from_uri(as_uri(path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{path!r} is not a place that can be reached: {error}; check the address and your credentials"
            ) from error
    return pyarrow.fs.LocalFileSystem(), absolute(path)


def as_uri(path: str) -> str:
    """Return a place as libraries take it: what a URI does not hold, such as a space, in percents; local paths as they
    are."""
    base, options = split_options(path)
    return quote(base, safe=ALLOWED + "%") + options if is_remote(path) else path


def absolute(path: str) -> str:
    """Return a local path made absolute (workers have another working directory); URIs as they are.

    Raises InputError for an empty one, which would mean the current folder.
    """
    if is_remote(path):
        return path
    local = path.removeprefix("file://")
    if not local:
        raise InputError(f"{path!r} is an empty path, as an unset variable of the shell gives; name the place")
    return os.path.abspath(os.path.expanduser(local))


def split_options(path: str) -> tuple[str, str]:
    """Return a place without the options at the end of its URI (`?endpoint_override=...`), and these."""
    found = OPTIONS.search(path) if is_remote(path) else None
    return (path[: found.start()], found.group()) if found else (path, "")


def entry(folder: str, name: str) -> str:
    """Return the place of something that was found in a folder by its name, in which a URI may not hold all."""
    return join(folder, quote(name, safe=ALLOWED) if is_remote(folder) else name)


def join(folder: str, name: str) -> str:
    """Return the place of a name in a folder; a URI keeps its options (`?endpoint_override=...`)."""
    base, options = split_options(folder)
    return f"{base.rstrip('/')}/{name}{options}"


def base_name(path: str) -> str:
    """Return the last part of a place."""
    return split_options(path)[0].rpartition("/")[2]


def exists(path: str) -> bool:
    """Say whether there is a file or folder."""
    return file_info(path).type != pyarrow.fs.FileType.NotFound


def file_size(path: str) -> int:
    """Return a file's size in bytes."""
    return file_info(path).size


def file_info(path: str) -> pyarrow.fs.FileInfo:
    """Return a place's type and size."""
    return look(path, lambda fs, inner: fs.get_file_info(inner))


def look(path: str, find: Callable[[pyarrow.fs.FileSystem, str], Result]) -> Result:
    """Return what is found at a place; raises StorageFailure where that cannot be known."""
    fs, inner = filesystem(path)
    return known(path, lambda: retried(path, lambda: find(fs, inner)))


def known(path: str, read: Callable[[], Result]) -> Result:
    """Return what a read gives; raises StorageFailure where it fails, if not for want of the file."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failed(path, error) from error


def retried(path: str, read: Callable[[], Result], tries: int | None = None) -> Result:
    """Return what a read gives; what fails is tried again a little later, by default on another machine alone."""
    for failures in range(1, tries or (TRIES if is_remote(path) else 1)):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if not may_pass(path, error):
                raise
            time.sleep(pause(failures))
    return read()


def may_pass(path: str, error: OSError) -> bool:
    """Say whether a failure may be over a little later: of a network or a device, not of a name or a right."""
    if error.errno is None:
        return is_remote(path) and "ACCESS_DENIED" not in str(error)
    return error.errno not in LASTING


def failed(path: str, error: Exception) -> StorageFailure:
    """Return the error that says that a place cannot be read, though what lies there may be whole."""
    return StorageFailure(
        f"{path!r} cannot be read: {' '.join(str(error).split())}; see that it can be reached and that you may read "
        "it, then start the same command again: it goes on"
    )


def pause(failures: int) -> float:
    """Return the seconds to wait after so many failures."""
    return FIRST_PAUSE * 2.0 ** (failures - 1)


def list_files(folder: str) -> list[str]:
    """Return the full paths of the files directly in a folder, sorted; none if it does not exist."""
    return [entry(folder, info.base_name) for info in found_in(folder) if info.is_file]


def list_folders(folder: str) -> list[str]:
    """Return the full paths of the folders directly in a folder, sorted; none if it does not exist."""
    return [entry(folder, info.base_name) for info in found_in(folder) if info.type == pyarrow.fs.FileType.Directory]


def found_in(folder: str) -> list[pyarrow.fs.FileInfo]:
    """Return what is directly in a folder, sorted."""
    infos = look(folder, lambda fs, inner: fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True)))
    return sorted(infos, key=lambda info: info.path)


def expand(pattern: str, setting: str | None = None) -> list[str]:
    """Return the files behind a path, glob or folder, sorted; hidden and `_`-files of folders are left out.

    Raises InputError where there is none, with the name of the setting that the pattern was given by.
    """
    pattern = absolute(pattern)
    named = f"{setting}={pattern!r}" if setting else repr(pattern)
    if is_web(pattern):
        check_web(pattern, named)
        return [pattern]
    _, inner = filesystem(pattern)
    info = file_info(pattern)
    if info.is_file:
        found, rule = [inner], ""
    elif info.type == pyarrow.fs.FileType.Directory:
        found, rule = walk(pattern, inner), "is a folder without files"
    elif any(character in inner for character in GLOB_CHARACTERS):
        stem = inner[: min(inner.index(c) for c in GLOB_CHARACTERS if c in inner)].rpartition("/")[0]
        parts = inner.split("/")
        below = walk(pattern, stem, lambda folder: leads(folder.split("/"), parts))
        found = [path for path in below if matches(path.split("/"), parts)]
        rule = "matches no file"
    else:
        found, rule = [], "does not exist"
    if not found:
        raise InputError(f"{named} {rule}; check the path")
    for path in found:
        check_name(path)
        if not is_remote(pattern):
            check_link(path)
    return sorted(found) if not is_remote(pattern) else [remote_path(pattern, path) for path in sorted(found)]


def check_web(address: str, named: str) -> None:
    """Raise InputError unless there is a file behind a web address."""
    if any(character in address for character in "*["):
        raise InputError(f"{named} is a glob, and web servers do not list files; name each file")
    if not exists(address):
        raise InputError(f"{named} does not exist; check the address")


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Say whether a path matches a glob, part by part: `*` stays inside a folder, `**` goes into any depth."""
    if pattern[:1] == ["**"]:
        return pattern == ["**"] or matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    if not pattern or not parts:
        return parts == pattern
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def leads(parts: list[str], pattern: list[str]) -> bool:
    """Say whether a folder may hold, at some depth, what matches a glob."""
    if not parts or pattern[:1] == ["**"]:
        return bool(pattern)
    return bool(pattern) and fnmatch.fnmatchcase(parts[0], pattern[0]) and leads(parts[1:], pattern[1:])


def walk(place: str, folder: str, is_wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Return all visible files below a folder of a place's file system; none if there is no such folder.

    is_wanted: whether a folder is looked into; not asked in an object store, which lists all at once.
    """
    if not is_remote(place):
        top = folder or "/"
        return look(place, lambda fs, _: [*local_files(top, is_wanted)] if os.path.isdir(top) else [])

    def find(fs: pyarrow.fs.FileSystem, _: str) -> list[pyarrow.fs.FileInfo]:
        if fs.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
            return []
        return fs.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))

    below = len(folder)
    return [
        info.path
        for info in look(place, find)
        if info.is_file and not any(part.startswith((".", "_")) for part in info.path[below:].split("/"))
    ]


def local_files(folder: str, is_wanted: Callable[[str], bool], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield all visible files, and links to nothing, below a local folder.

    A link back to a folder above has nothing new, and no end. A folder that is not wanted is not opened: it may be
    somebody else's, or go while others are read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith((".", "_"))]
    for entry in entries:
        if entry.is_dir():
            if is_wanted(entry.path):
                yield from local_files(entry.path, is_wanted, (*above, real))
        elif entry.is_file() or not os.path.exists(entry.path):
            yield entry.path


def check_name(path: str) -> None:
    """Raise InputError where a file's name is not UTF-8: Arrow opens no such file."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{os.fsencode(path)!r} has a name that is not UTF-8; rename the file") from error


def check_link(path: str) -> None:
    """Raise InputError where a local file is a link to nothing: its rows would be missing, and nobody would know."""
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(f"{path!r} is a link to {os.readlink(path)!r}, which is not there; fetch it, or remove it")


def remote_path(uri: str, inner: str) -> str:
    """Return the URI of a path inside the file system of another URI."""
    base, options = split_options(uri)
    return f"{base.partition('://')[0]}://{quote(inner, safe=ALLOWED)}{options}"
