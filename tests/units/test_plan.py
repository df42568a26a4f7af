"""Cutting files into units: every row in exactly one, names that follow from the unit."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reading import read_unit
from tfray import storage
from tfray.corpus.read import DamagedFile, declare_schema
from tfray.errors import InputError
from tfray.units.files import COMPRESSION_RATIO, InputFile, find_files
from tfray.units.plan import BYTES_PER_ROW, SAMPLE_BYTES, Unit, amount, cut_groups, estimate_rows, plan_units

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


@given(
    lines=LINES, end=ENDS, bom=st.booleans(), is_complete=st.booleans(), span=st.integers(1, 40), rows=st.integers(1, 9)
)
def test_every_line_of_a_cut_file_is_in_exactly_one_unit(
    tmp_path: Path, lines: list[str], end: str, bom: bool, is_complete: bool, span: int, rows: int
) -> None:
    text = end.join(lines) + (end if is_complete and lines else "")
    expected = [line.removesuffix("\r") for line in text.split("\n")]
    if expected[-1] == "":
        expected.pop()
    path = tmp_path / "lines.txt"
    path.write_bytes(text.encode("utf-8-sig" if bom and lines else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfray.units.lines.RANGE_BYTES", span)
        files = find_files([str(path)])
        units = plan_units(files, 1, rows)
    expected = [""] if bom and lines and not text else expected
    assert read_all(units, files) == expected
    assert all(unit.rows <= rows for unit in units)
    assert [unit.first_row for unit in units] == [sum(unit.rows for unit in units[:n]) for n in range(len(units))]


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


def test_units_hold_about_so_many_bytes_where_rows_are_long(tmp_path: Path) -> None:
    texts = [f"{row} {random.Random(row).randbytes(2000).hex()}" for row in range(640)]  # does not compress
    pq.write_table(pa.table({"source": texts}), tmp_path / "a.parquet", row_group_size=100)
    (tmp_path / "b.txt").write_text("\n".join(texts))
    for name in ("a.parquet", "b.txt"):
        files = find_files([str(tmp_path / name)])
        units = plan_units(files, 8, 1000, wanted=1, most_bytes=80_000)
        assert 15 <= statistics.median(unit.rows for unit in units) <= 25 and read_all(units, files) == texts
        assert max(unit.rows for unit in plan_units(files, 40, 1000, wanted=1, most_bytes=80_000)) in (39, 40)


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
@pytest.mark.parametrize("most_pieces", [1, 2, 7, 100])
def test_a_compressed_file_is_cut_into_as_many_units_as_is_said_with_every_line(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], most_pieces: int
) -> None:
    lines = [f"line {index} ä" for index in range(500)]
    path = tmp_path / f"lines.txt{ending}"
    path.write_bytes(compress("\n".join(lines).encode()))
    files = find_files([str(path)])
    units = plan_units(files, 1, 2, most_pieces=most_pieces)
    assert len(units) == most_pieces
    assert read_all(units, files) == lines
    if most_pieces > 1:
        assert [unit.first_row for unit in units] == [sum(unit.rows for unit in units[:n]) for n in range(len(units))]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.tsv.gz"])
def test_pieces_of_compressed_records_have_their_columns_and_numbers(tmp_path: Path, name: str) -> None:
    mark = {"csv": ",", "tsv": "\t"}.get(name.split(".")[1])
    lines = [f"line {n}{mark}{n}" if mark else json.dumps({"source": f"line {n}", "n": str(n)}) for n in range(300)]
    data = "".join(f"{line}\n" for line in [*([f"source{mark}n"] if mark else []), *lines]).encode()
    packed = gzip.compress(data) if name.endswith("gz") else pa.compress(data, "zstd", asbytes=True)
    (tmp_path / name).write_bytes(packed)
    files = find_files([f"{tmp_path}/{name}"])
    units = plan_units(files, 1, 40, most_pieces=100)
    schema = declare_schema(files, {"source", "n"})
    rows = [read_unit(unit, schema, {"source", "n"}) for unit in units]
    assert len(units) > 7 and [row.first_row for row in rows] == [unit.first_row for unit in units]
    assert [len(row.table) for row in rows] == [unit.rows for unit in units]
    assert [n for row in rows for n in row.table["n"].to_pylist()] == [str(n) for n in range(300)]


def test_a_compressed_file_that_breaks_off_is_one_unit_up_to_there(tmp_path: Path) -> None:
    lines = [f"line {index} {random.Random(index).random()}" for index in range(5000)]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-5000])
    files = find_files([str(tmp_path)])
    (unit,) = plan_units(files, 1, 10, most_pieces=100)
    with pytest.raises(DamagedFile):
        read_unit(unit, declare_schema(files, {"source"}), {"source"})


def test_unit_names_are_unique_and_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "x"}\n' * 5000)
    (tmp_path / "b.txt").write_text("x\n" * 5000)
    first = plan_units(find_files([str(tmp_path)]), 1, 50)
    again = plan_units(find_files([str(tmp_path)]), 1, 50)
    names = [unit.output_name for unit in first]
    assert len(set(names)) == len(names) > 10
    assert names == sorted(names) == [unit.output_name for unit in again]
    assert [Unit(**json.loads(json.dumps(asdict(unit)))) for unit in first] == first  # as they travel to workers


PLACES = st.tuples(st.integers(0, 2), st.sampled_from(["/a.txt", "/b.txt"]), st.integers(0, 9), st.integers(10, 20))


@given(PLACES, PLACES)
def test_a_units_name_follows_from_its_number_file_and_range_alone(one: tuple, two: tuple) -> None:
    def unit(place: tuple, corpus: str = "", rows: int = 1) -> Unit:
        index, path, start, stop = place
        return Unit(index, path, "text", None, start, stop, rows, rows, rows, corpus)

    assert (unit(one).stem == unit(two).stem) == (one == two)
    assert unit(one).stem == unit(one, "news", 7).stem
    assert unit(one).output_name == unit(one).stem + ".parquet"


def test_planning_reads_footers_and_the_first_bytes_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff" * 10_000_000)
    (tmp_path / "b.csv.gz").write_bytes(b"not gzip" * 1000)
    pq.write_table(pa.table({"source": ["x"] * 10}), tmp_path / "c.parquet")
    read = storage.read_chunks
    asked = []

    def spy(path: str, compression: str | None = None, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        asked.append((path, start, stop))
        return read(path, compression, start, stop)

    monkeypatch.setattr(storage, "read_chunks", spy)
    units = plan_units(find_files([str(tmp_path)]), 1000, 1 << 20)
    assert asked == [(str(tmp_path / "a.jsonl"), 0, SAMPLE_BYTES)]
    assert [(unit.format, unit.start, unit.stop) for unit in units] == [
        ("jsonl", 0, 10_000_000),
        ("csv", 0, 8000),
        ("parquet", 0, 10),
    ]


@given(sizes=st.lists(st.integers(0, 10**12), min_size=1, max_size=20), wanted=st.integers(1, 200))
def test_units_are_neither_above_the_largest_nor_needlessly_many(sizes: list[int], wanted: int) -> None:
    files = [
        InputFile(f"/{index}.parquet", "parquet", None, size, size, None, (size,)) for index, size in enumerate(sizes)
    ]
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
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_a_compressed_file_of_no_bytes_is_empty_and_one_that_breaks_off_is_not(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(b"")
    for name, data in [("none", whole), ("cut", whole[:-1]), ("one", compress(b"\n"))]:
        (tmp_path / f"{name}.txt{ending}").write_bytes(data)
    cut, none, one = find_files([str(tmp_path)])
    assert (cut.is_empty, none.is_empty, one.is_empty) == (False, True, False)
    assert [unit.path for unit in plan_units([cut, none, one], 1, 10)] == [cut.path, one.path]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "b.de"):
        (tmp_path / name).write_text("x\n")
    paths = [f"{tmp_path}/b.txt", f"{tmp_path}/*.txt", f"{tmp_path}/[a].*", str(tmp_path)]
    assert [Path(file.path).name for file in find_files(paths)] == ["b.txt", "a.txt", "b.de"]
    targets = [f"{tmp_path}/b.de", f"{tmp_path}/a.txt", f"{tmp_path}/b.de"]
    pairs = find_files([f"{tmp_path}/b.txt"] * 3, targets)
    assert [file.target_path for file in pairs] == targets[:2]


@pytest.mark.parametrize("name", ["a.txt.xz", "a.jsonl.XZ", "a.csv.zip", "a.tar.gz"])
def test_a_file_packed_in_a_way_that_is_not_read_says_so_and_has_no_unit(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"packed\n" * 100)
    (file,) = find_files([str(tmp_path)])
    assert file.damage == f"{name} is packed in a way that is not read; use .gz, .zst or .bz2"
    assert plan_units([file], 1, 10) == []


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
def test_a_file_that_is_not_parquet_says_so_and_has_no_unit(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.parquet").write_bytes(content)
    pq.write_table(pa.table({"source": ["x"]}), tmp_path / "good.parquet")
    broken, good = find_files([str(tmp_path)])
    assert broken.damage and "not a readable Parquet file" in broken.damage
    assert not broken.is_empty and good.damage is None
    assert [unit.path for unit in plan_units([broken, good], 1, 10)] == [good.path]


def test_a_truncated_parquet_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"source": [str(number) for number in range(1000)]}), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert find_files([str(path)])[0].damage


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_units_of_parquet_end_at_row_groups_unless_one_is_larger_than_a_unit(groups: list[int], unit_rows: int) -> None:
    bounds = cut_groups(tuple(groups), unit_rows, unit_rows)
    starts = [sum(groups[:number]) for number in range(len(groups) + 1)]
    assert (bounds[0], bounds[-1]) == (0, sum(groups))
    assert all(0 < stop - start <= unit_rows for start, stop in pairwise(bounds))
    for bound in set(bounds) - set(starts):
        assert groups[bisect_right(starts, bound) - 1] > unit_rows  # the group around it
    if all(rows <= unit_rows for rows in groups):
        assert set(bounds) <= set(starts)
        assert all(last - first > unit_rows for first, last in zip(bounds, bounds[2:], strict=False))


def test_a_row_group_is_not_read_again_for_too_many_units() -> None:
    assert len(cut_groups((100_000,), 1000, 100_000)) - 1 == 16
    assert len(cut_groups((100_000,), 1000, 2000)) - 1 == 50


def test_parallel_text_needs_a_target_file_for_each_source_file(tmp_path: Path) -> None:
    for name in ("a.en", "b.en", "a.de"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(InputError, match=r"2 source files .* 1 target files .* in the same order"):
        find_files([f"{tmp_path}/*.en"], [f"{tmp_path}/*.de"])
    (file,) = find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de"])
    assert file.paths == [f"{tmp_path}/a.en", f"{tmp_path}/a.de"]
    assert len(plan_units([file], 1, 1)) == 1


def test_a_target_file_beside_a_format_with_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="belongs to plain text"):
        find_files([f"{tmp_path}/a.jsonl"], [f"{tmp_path}/a.jsonl"])


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_the_rows_of_lines_are_guessed_by_the_first_of_them(tmp_path: Path, length: int) -> None:
    (tmp_path / "a.txt").write_bytes((b"x" * (length - 1) + b"\n") * 3000)
    (file,) = find_files([str(tmp_path)])
    assert file.rows is None
    assert estimate_rows(file) == pytest.approx(3000, rel=0.02)
    (unit,) = plan_units([file], 10_000, 10_000)
    assert unit.rows == estimate_rows(file) and unit.bytes == 3000 * length
    packed = InputFile("/a.txt.gz", "text", "gzip", 1000, None)
    assert estimate_rows(packed) == 1000 * COMPRESSION_RATIO // BYTES_PER_ROW


def test_the_header_of_tsv_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("source\tn\n" + "".join(f"x\t{number}\n" for number in range(100)))
    files = find_files([str(tmp_path)])
    units = plan_units(files, 1, 10)
    assert sum(unit.rows for unit in units) == 100 and len(units) > 9
    schema = declare_schema(files, {"source"})
    for unit in units:
        rows = read_unit(unit, schema, {"source"})
        assert rows.first_row == unit.first_row and len(rows.table) == unit.rows
        assert rows.table["n"].to_pylist() == [str(unit.first_row + index) for index in range(unit.rows)]


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_csv_is_cut_at_its_lines_unless_a_record_goes_over_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("tfray.storage.reading.CHUNK_BYTES", chunk)
    monkeypatch.setattr("tfray.units.lines.RANGE_BYTES", chunk)
    lines = [f'"x, ""{number}""",{number}' for number in range(100)]
    (tmp_path / "flat.csv").write_text("\n".join(["source,n", *lines]) + "\n")
    lines[50] = '"over two\nlines",50'
    (tmp_path / "over.csv").write_text("\n".join(["source,n", *lines]) + "\n")
    for name, is_cut in (("flat.csv", True), ("over.csv", False)):
        files = find_files([f"{tmp_path}/{name}"])
        units = plan_units(files, 1, 10)
        assert (len(units) > 9) == is_cut
        schema = declare_schema(files, {"source"})
        rows = [read_unit(unit, schema, {"source"}) for unit in units]
        assert [row.first_row for row in rows] == [unit.first_row for unit in units]
        assert [n for row in rows for n in row.table["n"].to_pylist()] == [str(number) for number in range(100)]
        assert next(text for row in rows for text in row.table["source"].to_pylist()) == 'x, "0"'


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_stray_quote_hides_no_record_that_goes_over_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("tfray.storage.reading.CHUNK_BYTES", chunk)
    monkeypatch.setattr("tfray.units.lines.RANGE_BYTES", chunk)
    records = ['"a", "b", "c"'] * 20, ['"a,",b,"c"'] * 20, ['5" wide,"over\nlines",6" high', *["a,b,c"] * 20]
    for lines, is_cut in zip(records, (True, True, False), strict=True):
        (tmp_path / "a.csv").write_text("\n".join(["\ufeffsize,source,note", *lines]) + "\n")
        files = find_files([f"{tmp_path}/a.csv"])
        units = plan_units(files, 1, 3)
        assert (len(units) > 1) == is_cut
        rows = [read_unit(unit, declare_schema(files, {"source"}), {"source"}) for unit in units]
        assert sum(len(part.table) for part in rows) == len(lines)
        assert not any(part.errors for part in rows)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_parallel_text_of_unequal_length_is_refused_with_both_counts(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo\nthree")
    data = b"eins\nzwei\n"
    (tmp_path / f"a.de{ending}").write_bytes(gzip.compress(data) if ending else data)
    files = find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de{ending}"])
    with pytest.raises(InputError, match=r"a\.en' has 3, '.*a\.de.*' has 2"):
        plan_units(files, 1, 10)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_empty_source_file_beside_a_target_file_with_lines_is_refused(tmp_path: Path, ending: str) -> None:
    source = tmp_path / f"a.en{ending}"
    source.write_bytes(gzip.compress(b"") if ending else b"")
    (tmp_path / "a.de").write_bytes(b"eins\n")
    with pytest.raises(InputError, match=r"as many lines on both sides; '.*a\.en.*' is empty, '.*a\.de' is not"):
        find_files([str(source)], [f"{tmp_path}/a.de"])
    (tmp_path / "a.de").write_bytes(b"")
    (file,) = find_files([str(source)], [f"{tmp_path}/a.de"])
    assert file.is_empty


def test_units_carry_their_corpus_and_go_on_with_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n" * 100)
    units = plan_units(find_files([str(tmp_path)]), 1, 10, corpus="news", first_index=7)
    assert [unit.index for unit in units] == list(range(7, 7 + len(units)))
    assert {unit.corpus for unit in units} == {"news"}


def test_progress_says_when_rows_are_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n" * 100)
    files = find_files([str(tmp_path)])
    assert amount("reading", plan_units(files, 1, 10)) == ("reading", 100, "row")
    assert amount("reading", plan_units(files, 1000, 1000))[0] == "reading (rows guessed by size)"
