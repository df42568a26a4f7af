"""`http://` and `https://` as a read-only file system for pyarrow, through fsspec.

A server that gives ranges of a file is asked for those; from one that does not, the whole file is
fetched into a temporary one first.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from typing import IO, Any
from urllib.parse import quote, urlsplit

import aiohttp
import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.http import HTTPFileSystem

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)  # aiohttp's own ends large files


@lru_cache(maxsize=1)
def web_filesystem() -> pyarrow.fs.PyFileSystem:
    """Return the file system of all web addresses; its paths are whole addresses."""
    return pyarrow.fs.PyFileSystem(WebHandler(HTTPFileSystem(client_kwargs={"timeout": TIMEOUT}, encoded=True)))


def encoded(address: str) -> str:
    """Return an address with what no address may hold (spaces, other scripts) encoded, and all else as it is."""
    return quote(address, safe="%/:?#[]@!$&'()*+,;=~")


def identity(url: str) -> list[object]:
    """Return size and ETag (or the date of the last change) of a file."""
    info = web_filesystem().handler.describe(url)
    return [info["size"], info.get("ETag") or info.get("Last-Modified")]


class WebHandler(pyarrow.fs.FSSpecHandler):
    """pyarrow's view of fsspec's HTTP files; what goes wrong is an OSError."""

    def __init__(self, fs: HTTPFileSystem) -> None:
        super().__init__(fs)
        self.gives_ranges: dict[str, bool] = {}  # by server

    def describe(self, url: str) -> dict[str, Any]:
        """Return size, ETag and the like; raises FileNotFoundError only where the server says so."""
        try:
            return self.fs.info(url)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, aiohttp.ClientResponseError) and error.__cause__.status in (404, 410):
                raise
            raise OSError(f"{url!r} cannot be reached: {error.__cause__ or error}") from error

    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        return [self.file_info(url) for url in paths]

    def file_info(self, url: str) -> pyarrow.fs.FileInfo:
        """Return a file's type and size."""
        try:
            size = self.describe(url)["size"]
        except FileNotFoundError:
            return pyarrow.fs.FileInfo(url, pyarrow.fs.FileType.NotFound)
        if size is None:
            raise OSError(f"the server does not tell the size of {url!r}; download the file and name the copy")
        return pyarrow.fs.FileInfo(url, pyarrow.fs.FileType.File, size=size)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        info = self.describe(path)
        has_ranges = info["size"] and info.get("partial", True) and self.probe(path, info["size"])
        return pa.PythonFile(WebFile(self.fs.open(path, size=info["size"])) if has_ranges else self.fetch(path), "r")

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        raise OSError("web addresses can only be read")

    def probe(self, url: str, size: int) -> bool:
        """Say whether a server gives ranges of its files."""
        server = urlsplit(url).netloc
        if server not in self.gives_ranges and size > 1:
            with self.fs.open(url, size=size, block_size=1) as file:
                try:
                    self.gives_ranges[server] = len(file._fetch_range(1, 2)) == 1
                except ValueError:  # fsspec's word for it
                    self.gives_ranges[server] = False
        return self.gives_ranges.get(server, False)

    def fetch(self, url: str) -> IO[bytes]:
        """Return a temporary file with a whole file's content."""
        file = tempfile.TemporaryFile()
        try:
            self.fs.get_file(url, file)
        except aiohttp.ClientError as error:
            file.close()
            raise OSError(f"{url!r}: {error}") from error
        file.seek(0)
        return file


class WebFile:
    """A file of a server that gives ranges; a broken connection is an OSError."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(f"{self.file.path!r}: {error}") from error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()

    @property
    def closed(self) -> bool:
        return self.file.closed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
