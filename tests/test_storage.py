"""Places: what is published is whole, what is named is found, what is the same has the same fingerprint."""

from __future__ import annotations

import errno
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray import storage
from tfray.errors import InputError
from tfray.storage import places, publishing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")


def found(folder: Path, pattern: str) -> list[str]:
    return [os.path.relpath(path, folder) for path in storage.expand(f"{folder}/{pattern}")]


@given(old=st.binary(), new=st.binary())
def test_a_published_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "file"
    storage.publish_bytes(str(path), old)
    with storage.publish(str(path)) as file:
        file.write(new)
        file.flush()
        assert path.read_bytes() == old
    assert path.read_bytes() == new


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_while_publishing_leaves_what_was_there_and_nothing_else(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(RuntimeError), storage.publish(str(path)) as file:
        file.write(b"half")
        raise RuntimeError("killed")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_table_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(table: pa.Table, file: object, compression: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.publish_table(str(tmp_path / "part.parquet"), pa.table({"a": [1]}))
    assert list(tmp_path.iterdir()) == []


class SmallDisk(io.FileIO):
    """A file on a disk that has room for little."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        room = 100_000 - self.tell()
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data[:room])


def test_a_full_disk_keeps_no_half_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "open", lambda path, mode: io.BufferedWriter(SmallDisk(path, mode)), raising=False)
    numbers = pa.array(random.Random(0).sample(range(1 << 60), 100_000))
    with pytest.raises(OSError, match="No space left"):
        storage.publish_table(str(tmp_path / "part.parquet"), pa.table({"a": numbers}))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_fails_for_a_moment_makes_no_place_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow asks for the region of a bucket."""
    failures = [OSError("When resolving region for bucket 'bucket': AWS Error NETWORK_CONNECTION")]

    class Failing:
        @staticmethod
        def from_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
            if failures:
                raise failures.pop()
            return pyarrow.fs.LocalFileSystem(), "/nothing/there"

    monkeypatch.setattr(places, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(pyarrow.fs, "FileSystem", Failing)
    assert not storage.exists("s3://bucket/nothing/there") and not failures


def test_publishing_makes_the_folders_on_the_way(tmp_path: Path) -> None:
    storage.publish_json(str(tmp_path / "a/b/c.json"), {"ü": 1})
    assert storage.read_json(str(tmp_path / "a/b/c.json")) == {"ü": 1}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("b.txt", ["b.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("*/c.txt", ["deep/c.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/c.txt", "deep/er/d.txt"]),
        ("deep/**", ["deep/c.txt", "deep/er/d.txt"]),
        ("deep", ["deep/c.txt", "deep/er/d.txt"]),
        (".hidden.txt", [".hidden.txt"]),  # who names a file means it
        ("odd[1].en", ["odd[1].en"]),
    ],
)
def test_paths_globs_and_folders_give_their_files_sorted_and_no_hidden_ones(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    make_files(tmp_path, "b.txt", "a.txt", ".hidden.txt", "_SUCCESS", "odd[1].en")
    make_files(
        tmp_path, "deep/c.txt", "deep/er/d.txt", "deep/_temporary/e.txt", "deep/.git/f.txt", "deep/_manifest.json"
    )
    assert found(tmp_path, pattern) == expected


def test_a_hidden_folder_above_the_input_does_not_hide_it(tmp_path: Path) -> None:
    make_files(tmp_path, ".cache/_data/a.txt")
    assert found(tmp_path, ".cache/_data") == [".cache/_data/a.txt"]


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("none.txt", "does not exist"),
        ("none/*.txt", "matches no file"),
        ("a.txt/*", "matches no file"),
        ("*.csv", "matches no file"),
        ("empty", "is a folder without files"),
        ("only_hidden", "is a folder without files"),
    ],
)
def test_input_that_is_not_there_is_refused_by_its_name(tmp_path: Path, pattern: str, rule: str) -> None:
    make_files(tmp_path, "a.txt", "only_hidden/_SUCCESS", "only_hidden/.part")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        storage.expand(f"{tmp_path}/{pattern}")
    assert str(error.value) == f"'{tmp_path}/{pattern}' {rule}; check the path"
    with pytest.raises(InputError, match=r"^corpus\.valid='"):
        storage.expand(f"{tmp_path}/{pattern}", "corpus.valid")


def test_a_relative_path_is_made_absolute_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    assert storage.expand("a.txt") == [str(tmp_path / "a.txt")]
    assert storage.absolute("file:///data/a.txt") == "/data/a.txt"
    assert storage.absolute("s3://bucket/a.txt") == "s3://bucket/a.txt"


@pytest.mark.parametrize("path", ["", "file://"])
def test_an_empty_path_is_not_the_current_folder(path: str) -> None:
    for look in (storage.absolute, storage.expand, storage.exists):
        with pytest.raises(InputError, match="is an empty path"):
            look(path)


def test_a_name_is_joined_before_the_options_of_a_uri() -> None:
    assert storage.join("/data/", "a") == "/data/a"
    assert storage.join("s3://bucket/folder?region=eu", "a") == "s3://bucket/folder/a?region=eu"
    assert storage.remote_path("s3://bucket/*.txt?region=eu", "bucket/a.txt") == "s3://bucket/a.txt?region=eu"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/my runs/für?region=eu", "s3://bucket/my%20runs/f%C3%BCr?region=eu"),
        ("s3://bucket/my%20runs", "s3://bucket/my%20runs"),
        ("/data/my runs/für", "/data/my runs/für"),
        ("file:///data/my runs", "file:///data/my runs"),
    ],
)
def test_a_place_with_a_space_or_an_umlaut_is_a_uri_as_libraries_take_it(place: str, expected: str) -> None:
    assert storage.as_uri(place) == storage.as_uri(storage.as_uri(place)) == expected


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "file")
    with pytest.raises(InputError, match="cannot be written"):
        storage.check_writable(str(tmp_path / "file" / "out"))
    storage.check_writable(str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


@given(a=JSON, b=JSON)
def test_values_have_the_same_fingerprint_exactly_when_they_are_the_same_json(a: object, b: object) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (storage.fingerprint(a) == storage.fingerprint(b)) == same


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert storage.fingerprint({"a": 1, "b": 2}) == storage.fingerprint({"b": 2, "a": 1})


def test_a_changed_byte_changes_a_files_fingerprint_and_a_rewrite_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 2_000_000 + b"x")
    before, identity = storage.file_fingerprint(str(path)), storage.file_identity(str(path))
    path.write_bytes(b"a" * 2_000_000 + b"y")
    os.utime(path, ns=(1, 1))
    assert storage.file_fingerprint(str(path)) != before
    assert storage.file_identity(str(path)) != identity


def test_lines_are_added_and_folders_removed(tmp_path: Path) -> None:
    log = storage.join(str(tmp_path), "log.jsonl")
    storage.append_line(log, "a")
    storage.append_line(log, "b")
    assert storage.read_text(log) == "a\nb\n"
    make_files(tmp_path, "folder/file")
    assert storage.list_folders(str(tmp_path)) == [str(tmp_path / "folder")]
    assert storage.list_files(str(tmp_path)) == [log]
    storage.remove(str(tmp_path / "folder"))
    storage.remove(str(tmp_path / "not there"))
    assert not storage.exists(str(tmp_path / "folder"))


def test_a_question_mark_in_a_local_name_begins_no_options(tmp_path: Path) -> None:
    folder = storage.join(str(tmp_path), "what?now=1")
    storage.publish_bytes(storage.join(folder, "a?b.txt"), b"x")
    (path,) = storage.list_files(folder)
    assert storage.base_name(path) == "a?b.txt" and storage.base_name(folder) == "what?now=1"
    assert storage.read_bytes(path) == b"x"
    assert storage.base_name("s3://bucket/a.txt?region=x") == "a.txt"


def test_a_link_back_to_a_folder_above_brings_no_file_again(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt", "v1/b.txt")
    for name in ("latest", "current"):  # two of them: who follows both never ends
        (tmp_path / name).symlink_to(".")
    (tmp_path / "v1/up").symlink_to("..")
    assert found(tmp_path, ".") == found(tmp_path, "**/*.txt") == ["a.txt", "v1/b.txt"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    make_files(tmp_path, "elsewhere/a.txt", "data/b.txt")
    (tmp_path / "data/more").symlink_to("../elsewhere")
    assert found(tmp_path, "data") == ["data/b.txt", "data/more/a.txt"]


def test_a_link_to_nothing_is_refused_by_its_name_where_it_would_be_read(tmp_path: Path) -> None:
    make_files(tmp_path, "data/a.txt")
    (tmp_path / "data/b.txt").symlink_to("../gone.txt")
    (tmp_path / "data/.c.txt").symlink_to("../gone.txt")
    assert found(tmp_path, "data/a*") == ["data/a.txt"]
    for pattern in ("data", "data/*.txt"):
        with pytest.raises(InputError, match=r"data/b\.txt' is a link to '\.\./gone\.txt', which is not there"):
            found(tmp_path, pattern)


@pytest.mark.parametrize("pattern", ["*.txt", "d*/*.txt", "d*/**", "*/[ab].txt"])
def test_a_glob_opens_no_folder_in_which_it_can_find_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    make_files(tmp_path, "a.txt", "data/a.txt", "data/deep/b.txt", "else/deep/b.txt")
    opened: list[str] = []
    scan = os.scandir

    def noted(folder: str) -> Any:
        opened.append(os.path.relpath(folder, tmp_path))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", noted)
    assert found(tmp_path, pattern)
    wanted = {"*.txt": [], "d*/*.txt": ["data"], "d*/**": ["data", "data/deep"], "*/[ab].txt": ["data", "else"]}
    assert sorted(opened) == [".", *wanted[pattern]]


def test_a_glob_may_begin_at_the_root(tmp_path: Path) -> None:
    make_files(tmp_path, "a.txt")
    top, *below = str(tmp_path).split("/")[1:]
    assert storage.expand(f"/{top[:-1]}[{top[-1]}]/{'/'.join(below)}/a.txt") == [f"{tmp_path}/a.txt"]


def test_a_file_whose_name_is_not_utf_8_is_refused_by_it(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.csv")).write_text("x\n")
    with pytest.raises(InputError, match=r"caf\\xe9\.csv' has a name that is not UTF-8"):
        storage.expand(str(tmp_path))
