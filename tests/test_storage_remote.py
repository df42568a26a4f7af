"""Places on other machines: a web server with and without ranges, and an S3 server, both real and on loopback."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import S3
from tests.reading import read_unit
from tfray import storage
from tfray.corpus.read import declare_schema
from tfray.errors import InputError, StorageFailure
from tfray.storage import places
from tfray.units.files import find_files
from tfray.units.plan import plan_units

CONTENT = b"".join(b"line %d\n" % number for number in range(300_000))  # more than fsspec reads at once


class WholeFiles(SimpleHTTPRequestHandler):
    """Python's own server: knows no ranges."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(WholeFiles):
    """A server that gives ranges and tells an ETag, and breaks every connection that `failures` allows."""

    failures = 0

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        start, stop = 0, len(data)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(stop, int(last or stop) + 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hash(data)}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if with_body and stop - start > 1 and Ranges.failures > 0:
            Ranges.failures -= 1
            self.wfile.write(data[start : start + 1])  # and the connection ends
            self.close_connection = True
        elif with_body:
            self.wfile.write(data[start:stop])


def serve(folder: Path, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(params=[WholeFiles, Ranges])
def web(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """Yield a folder and the address at which it is served."""
    Ranges.failures = 0
    server = serve(tmp_path, request.param)
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_PAUSE", 0.0)


def test_a_file_of_a_web_server_is_read_from_any_place(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "a.txt").write_bytes(CONTENT)
    url = f"{address}/a.txt"
    assert storage.expand(url) == [url] == storage.expand(storage.absolute(url))
    assert storage.file_size(url) == len(CONTENT)
    assert storage.read_bytes(url) == CONTENT
    assert b"".join(storage.read_chunks(url, start=5_000_000 // 2, stop=3_000_000)) == CONTENT[2_500_000:3_000_000]
    with storage.open_input(url) as file:
        file.seek(len(CONTENT) - 9)
        assert file.read() == CONTENT[-9:]


def test_every_format_is_read_from_the_web_as_from_disk(web: tuple[Path, str]) -> None:
    folder, address = web
    table = pa.table({"source": [f"text {number}" for number in range(3000)]})
    pq.write_table(table, folder / "a.parquet", row_group_size=700)
    (folder / "a.jsonl").write_text("".join(f'{{"source": "text {number}"}}\n' for number in range(3000)))
    (folder / "a b.txt.gz").write_bytes(gzip.compress(b"".join(b"text %d\n" % number for number in range(3000))))
    for name in ("a.parquet", "a.jsonl", "a b.txt.gz"):
        files = find_files([f"{address}/{name}"])
        schema = declare_schema(files, {"source"})
        parts = [read_unit(unit, schema, {"source"}) for unit in plan_units(files, 1, 900)]
        assert pa.concat_tables([part.table for part in parts]).equals(table)
        assert len(parts) == (1 if name.endswith("gz") else len(parts)) > 0


def test_a_web_file_that_changes_has_another_identity(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "a.txt").write_bytes(b"old")
    old = storage.file_identity(f"{address}/a.txt")
    assert old == storage.file_identity(f"{address}/a.txt")
    (folder / "a.txt").write_bytes(b"new")
    os.utime(folder / "a.txt", (1, 1))
    assert storage.file_identity(f"{address}/a.txt") != old


def test_what_the_web_cannot_do_is_refused_with_a_clear_word(web: tuple[Path, str], no_pause: None) -> None:
    _, address = web
    refusals: list[tuple[str, str, type[Exception]]] = [
        (f"{address}/none.txt", "does not exist", InputError),
        (f"{address}/*.txt", "web servers do not list files", InputError),
        ("http://127.0.0.1:9/a.txt", "cannot be read", StorageFailure),
    ]
    for url, word, kind in refusals:
        with pytest.raises(kind, match=word) as error:
            storage.expand(url)
        assert url in str(error.value)
    with pytest.raises(InputError, match="can only be read"):
        storage.check_writable(f"{address}/out")


def test_a_connection_that_breaks_is_made_anew_and_no_byte_is_lost_or_read_twice(
    tmp_path: Path, no_pause: None
) -> None:
    server = serve(tmp_path, Ranges)
    url = f"http://127.0.0.1:{server.server_port}/a.txt"
    (tmp_path / "a.txt").write_bytes(CONTENT)
    Ranges.failures = 2
    assert storage.read_bytes(url) == CONTENT
    assert Ranges.failures == 0
    (unit,) = plan_units(find_files([url]), 1 << 30, 1 << 30)
    Ranges.failures = 1000
    with pytest.raises(StorageFailure, match=r"a\.txt.*the same command"):
        read_unit(unit, pa.schema({"source": pa.string()}), {"source"})
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(s3: S3) -> str:
    """Return the URI of a folder in an empty bucket of an S3 server, with the options that lead there."""
    return s3.place("corpus", "data")


def test_an_object_store_is_written_listed_globbed_and_read(bucket: str) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.txt", "_SUCCESS"):
        storage.publish_text(storage.join(bucket, name), '{"source": "x"}\n')
    storage.publish_table(storage.join(bucket, "t.parquet"), pa.table({"source": ["y"]}))
    names = [path.partition("?")[0].removeprefix("s3://corpus/data/") for path in storage.list_files(bucket)]
    assert names == ["_SUCCESS", "a.jsonl", "b.jsonl", "t.parquet"]
    assert storage.expand(storage.join(bucket, "*.jsonl")) == [storage.join(bucket, n) for n in ("a.jsonl", "b.jsonl")]
    assert storage.expand(storage.join(bucket, "**/*.txt")) == [storage.join(bucket, "deep/c.txt")]
    assert len(storage.expand(bucket)) == 4
    assert storage.read_text(storage.join(bucket, "a.jsonl")) == '{"source": "x"}\n'
    assert storage.exists(storage.join(bucket, "deep")) and not storage.exists(storage.join(bucket, "none"))
    storage.check_writable(bucket)
    files = find_files([storage.join(bucket, "*.jsonl"), storage.join(bucket, "t.parquet")])
    schema = declare_schema(files, {"source"})
    rows = [read_unit(unit, schema, {"source"}) for unit in plan_units(files, 1, 10)]
    assert pa.concat_tables([part.table for part in rows])["source"].to_pylist() == ["x", "x", "y"]


ODD = ["a b.txt", "100%.txt", "50%25.txt", "Straße 狗.txt", "a+b&c=d.txt", "what?.txt", "[a]#1.txt", "date=1/x.txt"]


def test_a_key_may_hold_any_characters_and_is_found_by_every_way_to_name_it(bucket: str) -> None:
    fs, inner = storage.filesystem(bucket)
    for name in ODD:
        with fs.open_output_stream(f"{inner}/{name}") as stream:
            stream.write(name.encode())
    found = storage.expand(bucket)
    assert sorted(storage.read_text(path) for path in found) == sorted(ODD)
    assert [storage.expand(path) for path in found] == [[path] for path in found]
    listed = storage.list_files(bucket)
    assert {storage.read_text(path) for path in listed} == {name for name in ODD if "/" not in name}
    assert storage.read_text(storage.join(bucket, "a b.txt")) == "a b.txt", "as people write it"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("[ab].txt", "ab"), ("?.txt", "abc"), ("[!a].txt", "bc"), ("d/?.tx?", "d")],
)
def test_globs_of_an_object_store_are_those_of_a_disk(bucket: str, pattern: str, names: str) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d/d.txt", "long.txt"):
        storage.publish_text(storage.join(bucket, name), name)
    base, options = storage.split_options(bucket)
    found = storage.expand(f"{base}/{pattern}{options}")
    assert [storage.base_name(path)[0] for path in found] == list(names)


def test_an_object_appears_only_when_it_is_whole(bucket: str) -> None:
    place = storage.join(bucket, "half.txt")
    with pytest.raises(RuntimeError), storage.publish(place) as file:
        file.write(b"half")
        raise RuntimeError("killed")
    del file
    gc.collect()  # what is left over is closed here
    assert not storage.exists(place)
    storage.append_line(place, "a")
    storage.append_line(place, "b")
    assert storage.read_text(place) == "a\nb\n"
    identity = storage.file_identity(place)
    storage.publish_text(place, "changed")
    assert storage.file_identity(place) != identity
    storage.remove(place)
    assert not storage.exists(place)


def test_an_interrupt_while_an_object_is_put_comes_when_it_is_whole(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, copy = storage.join(bucket, "_manifest.json"), shutil.copyfileobj
    storage.publish_text(place, "old")

    def interrupted(source: Any, target: Any, length: int = 0) -> None:
        if isinstance(target, pa.NativeFile):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)
        copy(source, target, length)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.publish_text(place, "new")
    assert storage.read_text(place) == "new"


class Denied(BaseHTTPRequestHandler):
    """An S3 server that lets nobody in."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("name", ["in/a.parquet", "in", "in/*.parquet"])
def test_an_object_store_that_lets_nobody_in_is_named_at_once(s3: S3, name: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Denied)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    began = time.monotonic()
    with pytest.raises(StorageFailure, match=r"s3://bucket/in.*ACCESS_DENIED.*may read"):
        storage.expand(f"s3://bucket/{name}?{options}")
    assert time.monotonic() - began < 5
    server.shutdown()
    server.server_close()
