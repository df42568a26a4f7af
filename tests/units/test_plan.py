"""Cutting files into units: every row in exactly one, names that follow from the unit."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray import storage
from tfray.corpus.read import declare_schema, read_unit
from tfray.errors import InputError
from tfray.units.plan import BYTES_PER_ROW, InputFile, Unit, find_files, plan_units

LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=12)
    | st.sampled_from(["", "é", "漢字", "👩‍👩‍👧", "\u2028", "\x85", "x" * 300]),
    max_size=40,
)
ENDS = st.sampled_from(["\n", "\r\n"])


def read_all(units: list[Unit], files: list[InputFile]) -> list[str | None]:
    """Return the source column of all units, one after the other."""
    schema = declare_schema(files, {"source"})
    rows = [read_unit(unit, schema, {"source"}) for unit in units]
    assert not any(part.errors for part in rows)
    return [text for part in rows for text in part.table["source"].to_pylist()]


def with_small_rows(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let a few bytes weigh as a row, so that small files are cut."""
    monkeypatch.setattr("tfray.units.plan.BYTES_PER_ROW", size)


@given(
    lines=LINES, end=ENDS, bom=st.booleans(), is_complete=st.booleans(), row=st.integers(1, 40), rows=st.integers(1, 9)
)
def test_every_line_of_a_cut_file_is_in_exactly_one_unit(
    tmp_path: Path, lines: list[str], end: str, bom: bool, is_complete: bool, row: int, rows: int
) -> None:
    text = end.join(lines) + (end if is_complete and lines else "")
    expected = [line.removesuffix("\r") for line in text.split("\n")]
    if expected[-1] == "":
        expected.pop()
    path = tmp_path / "lines.txt"
    path.write_bytes(text.encode("utf-8-sig" if bom and lines else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        with_small_rows(patch, row)
        files = find_files([str(path)])
        units = plan_units(files, 1, rows)
    assert read_all(units, files) == ([""] if bom and lines and not text else expected)


@given(size=st.integers(1, 60), cuts=st.lists(st.integers(1, 59)))
def test_lines_stay_whole_wherever_the_bytes_are_cut(tmp_path: Path, size: int, cuts: list[int]) -> None:
    text = "".join(f"{'é' * (index % 3)}{index}\n" for index in range(20))
    path = tmp_path / "lines.txt"
    path.write_text(text, encoding="utf-8")
    stop = path.stat().st_size
    bounds = sorted({0, stop, *(cut for cut in cuts if cut < stop)})
    units = [Unit(index, str(path), "text", None, start, end, 1) for index, (start, end) in enumerate(pairwise(bounds))]
    assert read_all(units, find_files([str(path)])) == text.splitlines()


@given(
    groups=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    smallest=st.integers(1, 5),
    more=st.integers(0, 5),
    wanted=st.integers(1, 20),
)
def test_every_row_of_parquet_is_in_exactly_one_unit(
    tmp_path: Path, groups: list[int], smallest: int, more: int, wanted: int
) -> None:
    path, count = tmp_path / "rows.parquet", 0
    with pq.ParquetWriter(path, pa.schema({"n": pa.int64(), "source": pa.string()})) as writer:
        for rows in groups:
            numbers = list(range(count, count + rows))
            writer.write_table(pa.table({"n": numbers, "source": [str(n) for n in numbers]}, writer.schema))
            count += rows
    files = find_files([str(path)])
    units = plan_units(files, smallest, smallest + more, wanted)
    assert read_all(units, files) == [str(n) for n in range(count)]
    assert all(0 < unit.rows <= smallest + more for unit in units)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        (".GZ", gzip.compress),
        (".gz", lambda data: gzip.compress(data[:1001]) + gzip.compress(data[1001:])),  # as `cat` makes them
    ],
)
def test_a_compressed_file_is_one_unit_with_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    with_small_rows(monkeypatch, 1)
    lines = [f"line {index} ä" for index in range(500)]
    path = tmp_path / f"lines.txt{ending}"
    path.write_bytes(compress("\n".join(lines).encode()))
    files = find_files([str(path)])
    units = plan_units(files, 1, 2)
    assert len(units) == 1
    assert read_all(units, files) == lines


def test_unit_names_are_unique_and_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "x"}\n' * 5000)
    (tmp_path / "b.txt").write_text("x\n" * 5000)
    first = plan_units(find_files([str(tmp_path)]), 1, 50)
    again = plan_units(find_files([str(tmp_path)]), 1, 50)
    names = [unit.output_name for unit in first]
    assert len(set(names)) == len(names) > 10
    assert names == sorted(names) == [unit.output_name for unit in again]


@given(start=st.integers(0, 9), stop=st.integers(10, 20), other=st.tuples(st.integers(0, 9), st.integers(10, 20)))
def test_a_units_name_changes_exactly_when_its_range_does(start: int, stop: int, other: tuple[int, int]) -> None:
    one = Unit(0, "/a.txt", "text", None, start, stop, 1)
    two = Unit(0, "/a.txt", "text", None, *other, 1)
    assert (one.output_name == two.output_name) == ((start, stop) == other)


def test_planning_reads_footers_and_sizes_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff" * 10_000)
    (tmp_path / "b.csv.gz").write_bytes(b"not gzip")
    pq.write_table(pa.table({"source": ["x"] * 10}), tmp_path / "c.parquet")
    opened = []

    def spy(path: str) -> pa.NativeFile:
        opened.append(path)
        return pa.OSFile(path)

    monkeypatch.setattr(storage, "open_input", spy)
    units = plan_units(find_files([str(tmp_path)]), 1, 10)
    assert opened == [str(tmp_path / "c.parquet")]
    assert sum(unit.rows for unit in units if unit.format == "parquet") == 10
    assert sum(unit.stop - unit.start for unit in units if unit.format == "jsonl") == 10_000


@given(sizes=st.lists(st.integers(0, 10**12), min_size=1, max_size=20), wanted=st.integers(1, 200))
def test_units_are_neither_above_the_largest_nor_needlessly_many(sizes: list[int], wanted: int) -> None:
    files = [InputFile(f"/{index}.parquet", "parquet", None, size) for index, size in enumerate(sizes)]
    total = sum(sizes)
    largest = max(100, total // 1000)
    units = plan_units(files, 100, largest, wanted)
    assert sum(unit.rows for unit in units) == total
    assert all(unit.rows <= largest for unit in units)
    assert len(units) <= max(wanted, total / largest) + len(sizes) + 1


def test_an_empty_file_has_no_unit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    pq.write_table(pa.table({"source": pa.array([], pa.string())}), tmp_path / "b.parquet")
    assert plan_units(find_files([str(tmp_path)]), 1, 10) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", ("parquet", None)),
        ("a.jsonl", ("jsonl", None)),
        ("a.JSONL", ("jsonl", None)),
        ("a.ndjson.zst", ("jsonl", "zstd")),
        ("a.json.gz", ("jsonl", "gzip")),
        ("a.csv.bz2", ("csv", "bz2")),
        ("a.tsv", ("tsv", None)),
        ("a.en", ("text", None)),
        ("a", ("text", None)),
    ],
)
def test_the_name_tells_the_format(tmp_path: Path, name: str, expected: tuple[str, str | None]) -> None:
    path = tmp_path / name
    path.write_text("x")
    if name.endswith("parquet"):
        pq.write_table(pa.table({"a": [1]}), path)
    (file,) = find_files([str(path)])
    assert (file.format, file.compression) == expected


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a Parquet file at all", b"PAR1" + b"\0" * 50 + b"NOPE"])
def test_a_file_that_is_not_parquet_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.parquet"):
        find_files([str(path)])


def test_parallel_text_needs_a_target_file_for_each_source_file(tmp_path: Path) -> None:
    for name in ("a.en", "b.en", "a.de"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(InputError, match=r"2 source files .* 1 target files"):
        find_files([f"{tmp_path}/*.en"], [f"{tmp_path}/*.de"])
    (file,) = find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de"])
    assert file.paths == [f"{tmp_path}/a.en", f"{tmp_path}/a.de"]
    assert len(plan_units([file], 1, 1)) == 1


def test_a_target_file_beside_a_format_with_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="belongs to plain text"):
        find_files([f"{tmp_path}/a.jsonl"], [f"{tmp_path}/a.jsonl"])


def test_lines_weigh_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 10 * BYTES_PER_ROW)
    (file,) = find_files([str(tmp_path)])
    assert file.rows == 10
