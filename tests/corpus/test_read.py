"""Reading: one row for each line of every format, and an error with a name for each that is no good."""

from __future__ import annotations

import bz2
import contextlib
import csv
import errno
import gzip
import io
import json
import math
import os
import pickle
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reading import read_unit
from tfray.corpus.delimited import LONGEST_RECORD
from tfray.corpus.lines import LONGEST_LINE
from tfray.corpus.read import DamagedFile, Rows, declare_schema, read_blocks
from tfray.errors import InputError, StorageFailure
from tfray.storage import places, reading
from tfray.units.files import InputFile, find_files
from tfray.units.plan import plan_units

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LINE_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t"), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def read_files(files: list[InputFile], text_columns: set[str]) -> Rows:
    """Return the rows of all files' units as one."""
    schema = declare_schema(files, text_columns)
    parts = [read_unit(unit, schema, text_columns) for unit in plan_units(files, 1 << 20, 1 << 20)]
    tables = [schema.empty_table(), *(part.table for part in parts)]
    starts = np.cumsum([len(table) for table in tables]).tolist()
    errors = {  # by their index in all files together
        start + index: error for start, part in zip(starts, parts, strict=False) for index, error in part.errors.items()
    }
    table = pa.concat_tables(tables)
    table.validate(full=True)
    return Rows(table, errors, parts[0].first_row if parts else 0)


def read_bytes(path: Path, data: bytes, text_columns: frozenset[str] = frozenset({"source"})) -> Rows:
    """Return the rows of a file with the given content."""
    path.write_bytes(data)
    return read_files(find_files([str(path)]), set(text_columns))


def kinds(rows: Rows) -> list[str | None]:
    return [rows.errors[index].partition(":")[0] if index in rows.errors else None for index in range(len(rows.table))]


# ---- JSONL


@pytest.mark.parametrize(
    ("line", "kind", "source"),
    [
        (b'{"source": "good", "id": 1}', None, "good"),
        ('{"source": "a\u2028b\u2029c\x85d"}'.encode(), None, "a\u2028b\u2029c\x85d"),
        (rb'{"source": "a\nb\u0000\u001b"}', None, "a\nb\x00\x1b"),
        (rb'{"source": "\ud83d\ude00"}', None, "😀"),
        (b'{"source": "twice", "source": "last"}', None, "last"),
        (b'{"source": "cr"}\r', None, "cr"),
        (b'{"id": 1}', None, None),
        (b'{"Source": "other case"}', None, None),
        (b'{"source": null}', None, None),
        (b'{"source": ""}', None, ""),
        (b"", "blank_line", None),
        (b" \t ", "blank_line", None),
        (b"{", "bad_json", None),
        (b'{"source": "cut', "bad_json", None),
        (b'{"source": "a"} {"source": "b"}', "bad_json", None),
        (b'{"source": "raw\x01control"}', "bad_json", None),
        (b'{"source": "x", "id": NaN}', "bad_json", None),
        (b'{"source": "x", "id": -Infinity}', "bad_json", None),
        (b'["source", "x"]', "bad_json", None),
        (b'"source"', "bad_json", None),
        (b"source\ttarget", "bad_json", None),
        (b"[" * 100_000, "bad_json", None),
        (b'{"source": "x", "id": ' + b"9" * 5000 + b"}", "bad_json", None),
        (b'{"source": "caf\xe9"}', "bad_utf8", None),
        (b'{"source": "\xff\xfe"}', "bad_utf8", None),
        (rb'{"source": "\ud800"}', "bad_utf8", None),
        (b'{"source": 7}', "not_text", None),
        (b'{"source": true}', "not_text", None),
        (b'{"source": ["x"]}', "not_text", None),
        (b'{"source": {"text": "x"}}', "not_text", None),
        (b'{"source": "good", "id": "7"}', "bad_type", "good"),
        (b'{"source": "good", "id": 9223372036854775808}', "bad_type", "good"),
        (b'{"source": "good", "id": 1e999}', "bad_type", "good"),
        (b'{"source": "good", "id": [1]}', "bad_type", "good"),
        (b'{"source": "good", "id": true}', "bad_type", "good"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("is_last", [False, True])
def test_a_bad_line_is_one_row_with_its_error_and_its_neighbours_are_good(
    tmp_path: Path, line: bytes, kind: str | None, source: str | None, is_last: bool
) -> None:
    good = b'{"source": "good", "id": 1}\n'
    # The thousand lines by which the types are inferred come first.
    rows = read_bytes(tmp_path / "a.jsonl", good * 1000 + line + (b"" if is_last else b"\n" + good))
    if is_last and not line:
        return  # a final line end begins no line
    assert rows.table["source"].to_pylist()[1000:] == [source] if is_last else [source, "good"]
    assert kinds(rows)[1000:] == ([kind] if is_last else [kind, None])
    assert kinds(rows)[:1000] == [None] * 1000
    assert rows.first_row == 0


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["source", "id", "x"]), JSON_VALUES).map(json.dumps).map(str.encode)
        | st.binary(max_size=20).filter(lambda data: b"\n" not in data)
        | st.text(max_size=5).map(lambda text: json.dumps({"source": text, text: 1}).encode()),
        max_size=12,
    )
)
def test_whatever_the_lines_hold_each_is_one_row_that_can_be_written(tmp_path: Path, lines: list[bytes]) -> None:
    rows = read_bytes(tmp_path / "a.jsonl", b"".join(line + b"\n" for line in [b'{"source": ""}', *lines]))
    assert len(rows.table) == 1 + len(lines)
    assert all(0 < index < len(rows.table) for index in rows.errors)
    pq.write_table(rows.table, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(rows.table)


@given(st.lists(st.fixed_dictionaries({"source": TEXT, "n": st.integers(-(2**63), 2**63 - 1)}), min_size=1))
def test_good_jsonl_comes_back_as_it_was(tmp_path: Path, records: list[dict]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    rows = read_bytes(tmp_path / "a.jsonl", text.encode())
    assert not rows.errors
    assert rows.table.to_pylist() == records


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], pa.int64()),
        (["1", "null"], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["true"], pa.bool_()),
        (["null"], pa.string()),
        (["1", '"a"'], pa.string()),
        (["true", "1"], pa.string()),
        (["[1]"], pa.string()),
        (["1", "9223372036854775808"], pa.string()),
    ],
)
def test_a_json_column_has_the_type_that_holds_what_was_seen(
    tmp_path: Path, values: list[str], expected: pa.DataType
) -> None:
    rows = read_bytes(tmp_path / "a.jsonl", "".join(f'{{"x": {value}}}\n' for value in values).encode())
    assert rows.table.schema.field("x").type == expected
    assert not rows.errors
    if expected == pa.string() and values != ["null"]:
        assert rows.table["x"].to_pylist() == [json.loads(v) if v.startswith('"') else v for v in values]


def test_a_whole_number_that_a_float_cannot_hold_is_refused_and_not_rounded(tmp_path: Path) -> None:
    rows = read_bytes(tmp_path / "a.jsonl", b'{"x": 0.5}\n{"x": 1152921504606846977}\n{"x": 3}\n')
    assert rows.table["x"].to_pylist() == [0.5, None, 3.0]
    assert kinds(rows) == [None, "bad_type", None]


@pytest.mark.parametrize("first", ["text", 1])
def test_a_json_value_nested_as_deeply_as_can_be_read_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: object
) -> None:
    monkeypatch.setattr("tfray.corpus.jsonl.SAMPLE_LINES", 1)  # the column is of the first line's type
    depths = range(1, sys.getrecursionlimit())
    lines = [f'{{"source": "good", "id": {"[" * depth}{"]" * depth}}}' for depth in depths]
    text = "\n".join([json.dumps({"source": "good", "id": first}), *lines])
    rows = read_bytes(tmp_path / "a.jsonl", text.encode())
    assert len(rows.table) == len(lines) + 1
    assert {*kinds(rows)} == {None, "bad_json", *(() if first == "text" else ("bad_type",))}


def test_a_field_name_that_utf8_cannot_say_is_no_column_and_no_crash(tmp_path: Path) -> None:
    rows = read_bytes(tmp_path / "a.jsonl", rb'{"source": "x", "\ud800": 1}' + b"\n")
    assert rows.table.to_pylist() == [{"source": "x"}]


def test_a_byte_order_mark_goes_at_the_start_and_stays_inside(tmp_path: Path) -> None:
    rows = read_bytes(tmp_path / "a.jsonl", '\ufeff{"source": "a\ufeffb"}\n'.encode())
    assert rows.table["source"].to_pylist() == ["a\ufeffb"]


# ---- CSV and TSV


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_what_pythons_csv_writes_comes_back_with_quotes_and_newlines(tmp_path: Path, pairs: list[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("source", "target"), *pairs])
    rows = read_bytes(tmp_path / "a.csv", text.getvalue().encode())
    assert not rows.errors
    assert list(zip(*rows.table.to_pydict().values(), strict=True)) == pairs


@given(st.lists(st.tuples(LINE_TEXT, LINE_TEXT), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_tsv_knows_no_quotes_and_every_line_is_a_row(tmp_path: Path, pairs: list[tuple], end: str) -> None:
    text = end.join("\t".join(pair) for pair in [("source", "target"), *pairs])
    rows = read_bytes(tmp_path / "a.tsv", text.encode())
    assert not rows.errors
    assert list(zip(*rows.table.to_pydict().values(), strict=True)) == pairs


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", b"x,y\n", [("bad_csv", None), (None, "z")]),
        ("a.csv", b"x\n", [("bad_csv", None), (None, "z")]),
        ("a.csv", b"\n", [("blank_line", None), (None, "z")]),
        ("a.csv", b"caf\xe9,b,c\n", [("bad_utf8", None), (None, "z")]),
        ("a.csv", b"x\ry,b,c\n", [("bad_csv", None), (None, "z")]),
        ("a.csv", b'"a"b,b,c\n', [("bad_csv", None), (None, "z")]),
        ("a.csv", b"x" * 200_000 + b",b,c\n", [(None, "x" * 200_000), (None, "z")]),
        ("a.csv", b"x" * (LONGEST_RECORD + 1) + b",b,c\n", [("bad_csv", None), (None, "z")]),
        ("a.csv", b'x,y,"open\n', [("bad_csv", None), (None, "z")]),
        ("a.tsv", b"x\ty\n", [("bad_tsv", None), (None, "z")]),
        ("a.tsv", b"\n", [("blank_line", None), (None, "z")]),
        ("a.tsv", b"caf\xe9\tb\tc\n", [("bad_utf8", None), (None, "z")]),
        ("a.tsv", b'"\ty\tc\n', [(None, '"'), (None, "z")]),
        ("a.tsv", b"x\ry\tb\tc\n", [(None, "x\ry"), (None, "z")]),
    ],
)
def test_a_bad_line_of_csv_or_tsv_is_one_row_with_its_error(
    tmp_path: Path, name: str, data: bytes, expected: list[tuple]
) -> None:
    mark = b"," if name.endswith("csv") else b"\t"
    rows = read_bytes(tmp_path / name, mark.join([b"source", b"b", b"c\n"]) + data + mark.join([b"z", b"1", b"2"]))
    assert list(zip(kinds(rows), rows.table["source"].to_pylist(), strict=True)) == expected


def test_a_field_of_csv_may_be_long(tmp_path: Path) -> None:
    rows = read_bytes(tmp_path / "a.csv", b"source,id\n" + b"x" * 140_000 + b",1\n")
    assert rows.table.to_pylist() == [{"source": "x" * 140_000, "id": "1"}] and not rows.errors


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\n", "must name the columns"),
        (b"\xe9,b\n", "not UTF-8"),
        (b'"open,b\n', "must name the columns.*add a line of column names"),
        (b"source,a,source\n", "several columns named source"),
    ],
)
def test_a_header_that_names_no_columns_is_refused_by_the_files_name(
    tmp_path: Path, header: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_bytes(tmp_path / "a.csv", header)
    assert "a.csv" in str(error.value)


# ---- plain and parallel text


@given(st.lists(LINE_TEXT, min_size=1))
def test_every_line_of_plain_text_is_a_source(tmp_path: Path, lines: list[str]) -> None:
    rows = read_bytes(tmp_path / "a.txt", "".join(line + "\n" for line in lines).encode())
    assert rows.table.to_pylist() == [
        {"source": line.removeprefix("\ufeff") if index == 0 else line} for index, line in enumerate(lines)
    ]


def test_parallel_text_stays_aligned_around_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntw\xff\nthree\nfour")
    (tmp_path / "a.de.gz").write_bytes(gzip.compress("eins\nzwei\ndr\xeei\nvier\n".encode("latin-1")))
    rows = read_files(find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de.gz"]), {"source", "target"})
    assert rows.table["source"].to_pylist() == ["one", None, "three", "four"]
    assert rows.table["target"].to_pylist() == ["eins", "zwei", None, "vier"]
    assert kinds(rows) == [None, "bad_utf8", "bad_utf8", None]


def test_parallel_text_of_unequal_length_is_refused_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    with pytest.raises(InputError, match=r"a\.en' has 3, '.*a\.de' has 2"):
        read_files(find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de"]), {"source", "target"})


# ---- Parquet


def test_parquet_columns_keep_their_types_and_missing_ones_are_null(tmp_path: Path) -> None:
    table = pa.table(
        {"source": ["a", None], "tags": [[1], [2, 3]], "score": [math.inf, 1.0], "n": pa.array([1, 2], "i4")}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": pa.array([2**40], "i8"), "source": ["b"]}), tmp_path / "b.parquet")
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table.to_pylist() == [
        *table.to_pylist(),
        {"source": "b", "tags": None, "score": None, "n": 2**40},
    ]
    assert rows.table.schema.field("n").type == pa.int64()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_is_text_however_its_writer_holds_it(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"source": pa.array(["a", "b", "a", None]).cast(kind)}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"source": "c"}\n')
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table["source"].to_pylist() == ["a", "b", "a", None, "c"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_parquet_text_that_is_not_utf8_is_null_with_an_error(tmp_path: Path, kind: pa.DataType) -> None:
    raw = pa.array([b"good\n", b"\xff", None, b"caf\xe9"], pa.binary() if kind == pa.string() else pa.large_binary())
    column = pa.Array.from_buffers(kind, len(raw), raw.buffers())
    pq.write_table(pa.table({"source": column, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table["source"].to_pylist() == ["good\n", None, None, None]
    assert kinds(rows) == [None, "bad_utf8", None, "bad_utf8"]


@pytest.mark.parametrize(
    ("values", "wider"),
    [
        (pa.array([1, 2**53 + 1, None, 4]), pa.array([0.5])),
        (pa.array([1, 2**64 - 1, None, 4], pa.uint64()), pa.array([-1])),
        (pa.array([[1], [2, 2**53 + 1], None, []]), pa.array([[0.5]])),
    ],
    ids=lambda array: str(array.type),
)
def test_a_value_that_the_wider_type_of_other_files_does_not_hold_costs_itself_alone(
    tmp_path: Path, values: pa.Array, wider: pa.Array
) -> None:
    pq.write_table(pa.table({"source": list("abcd"), "n": values}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"source": ["e"], "n": wider}), tmp_path / "b.parquet")
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    expected = [*values.to_pylist(), *wider.to_pylist()]
    assert rows.table["n"].to_pylist() == [expected[0], None, *expected[2:]]
    assert rows.table["source"].to_pylist() == list("abcde")
    assert kinds(rows) == [None, "bad_type", None, None, None]
    assert rows.errors[1].startswith("bad_type: n is not ")


@pytest.mark.parametrize(
    ("price", "other"),
    [
        (pa.array([Decimal("1.5"), None]), pa.array([0.5], pa.float16())),
        (pa.nulls(2), pa.array([[1]], pa.list_view(pa.int64()))),
    ],
    ids=lambda array: str(array.type),
)
def test_a_column_that_arrow_cannot_turn_into_another_files_type_costs_its_values_alone(
    tmp_path: Path, price: pa.Array, other: pa.Array
) -> None:
    pq.write_table(pa.table({"source": ["a", "b"], "price": price}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"source": ["c"], "price": other}), tmp_path / "b.parquet")
    files = find_files([str(tmp_path)])
    schema = pa.schema({"source": pa.string(), "price": other.type})
    rows = [read_unit(unit, schema, {"source"}) for unit in plan_units(files, 10, 10)]
    assert [part.table["source"].to_pylist() for part in rows] == [["a", "b"], ["c"]]
    assert [part.table["price"].to_pylist() for part in rows] == [[None, None], other.to_pylist()]
    assert kinds(rows[0]) == ["bad_type" if value.is_valid else None for value in price]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["source", "source"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet' has several columns named source"):
        read_files(find_files([str(tmp_path)]), {"source"})


def test_files_whose_columns_disagree_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "a", "id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"source": "a", "id": "x"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl' has other column types.*make the types alike"):
        declare_schema(find_files([str(tmp_path)]), {"source"})


# ---- any cut into units and blocks


FILES = st.sampled_from(["a.jsonl", "a.tsv", "a.csv", "a.txt", "a.parquet"])


def write_lines(path: Path, lines: list[str], end: str) -> None:
    """Write texts as the source column of a file; its name says the format."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"source": pa.array(lines, pa.string())}), path, row_group_size=7)
        return
    if path.suffix == ".jsonl":
        lines = [json.dumps({"source": line}, ensure_ascii=False) for line in lines]
    elif path.suffix in (".tsv", ".csv"):
        lines = ["source", *(f'"{line}"' if path.suffix == ".csv" else line for line in lines)]
    path.write_bytes("".join(line + end for line in lines).encode())


@given(
    name=FILES,
    lines=st.lists(LINE_TEXT.map(lambda text: "x" + text.replace('"', "'")), min_size=1, max_size=60),
    end=st.sampled_from(["\n", "\r\n"]),
    largest=st.integers(1, 70),
    rows=st.integers(1, 30),
    size=st.integers(1, 200),
    chunk=st.integers(1, 100),
)
def test_any_cut_into_units_and_any_size_of_blocks_gives_the_same_rows_with_the_same_numbers(
    tmp_path: Path, name: str, lines: list[str], end: str, largest: int, rows: int, size: int, chunk: int
) -> None:
    path = tmp_path / name
    write_lines(path, lines, end)
    files = find_files([str(path)])
    schema = declare_schema(files, {"source"})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lines", "parquet", "delimited"):
            patch.setattr(f"tfray.corpus.{module}.BLOCK_ROWS", rows)
            patch.setattr(f"tfray.corpus.{module}.BLOCK_BYTES", size)
        patch.setattr("tfray.storage.reading.CHUNK_BYTES", chunk)
        patch.setattr("tfray.units.lines.RANGE_BYTES", chunk)
        units = plan_units(files, 1, largest)
        found: dict[int, str] = {}
        for unit in units:
            row = unit.first_row
            for block in read_blocks(unit, schema, {"source"}):
                assert block.first_row == row and 0 < len(block.table) <= rows and not block.errors
                found.update(enumerate(block.table["source"].to_pylist(), block.first_row))
                row += len(block.table)
            assert row - unit.first_row == unit.rows
    assert [found[number] for number in range(len(lines))] == lines
    assert len(found) == len(lines) == sum(unit.rows for unit in units)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    ending=st.sampled_from(["", ".gz"]),
    largest=st.integers(1, 40),
    chunk=st.integers(1, 100),
    is_closed=st.booleans(),
)
def test_any_cut_of_parallel_text_stays_aligned(
    tmp_path: Path, counts: list[int], ending: str, largest: int, chunk: int, is_closed: bool
) -> None:
    expected = []
    for old in tmp_path.iterdir():
        old.unlink()
    for number, count in enumerate(counts):
        sources = [f"s{number}-{line}" * (line % 3) for line in range(count)]
        targets = [f"target {number}-{line}" * (line % 4) for line in range(count)]
        (tmp_path / f"{number}.en").write_text("".join(f"{line}\n" for line in sources))
        text = "".join(f"{line}\r\n" for line in targets).encode()
        text = text if is_closed or not targets or not targets[-1] else text[:-2]
        (tmp_path / f"{number}.de{ending}").write_bytes(gzip.compress(text) if ending else text)
        expected += list(zip(range(count), sources, targets, strict=True))
    files = find_files([f"{tmp_path}/*.en"], [f"{tmp_path}/*.de*"])
    schema = pa.schema({"source": pa.string(), "target": pa.string()})
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfray.storage.reading.CHUNK_BYTES", chunk)
        patch.setattr("tfray.units.lines.RANGE_BYTES", chunk)
        for unit in plan_units(files, 1, largest):
            rows = read_unit(unit, schema, set(schema.names))
            assert len(rows.table) == unit.rows and not rows.errors
            numbers = range(unit.first_row, unit.first_row + unit.rows)
            found += list(zip(numbers, *rows.table.to_pydict().values(), strict=True))
    assert found == expected


# ---- lines and records that never seem to end


def test_a_line_that_is_too_long_is_one_row_with_an_error(tmp_path: Path) -> None:
    long = b"x" * (LONGEST_LINE + 1)
    (tmp_path / "a.txt").write_bytes(b"a\n" + long + b"\nb\n" + long)
    rows = read_files(find_files([f"{tmp_path}/a.txt"]), {"source"})
    assert rows.table["source"].to_pylist() == ["a", None, "b", None]
    assert kinds(rows) == [None, "too_long", None, "too_long"]
    (tmp_path / "a.tsv").write_bytes(b"source\tb\na\tb\n" + long + b"\nc\td\n")
    rows = read_files(find_files([f"{tmp_path}/a.tsv"]), {"source"})
    assert rows.table["source"].to_pylist() == ["a", None, "c"] and kinds(rows) == [None, "too_long", None]
    (tmp_path / "a.csv").write_bytes(b'source,b\na,"b\n' + long + b"\nc,d\n")
    rows = read_files(find_files([f"{tmp_path}/a.csv"]), {"source"})
    assert rows.table["source"].to_pylist() == [None, None, "c"] and kinds(rows) == ["bad_csv", "too_long", None]


MEASURE = """
import resource, sys
from tfray.corpus.read import declare_schema, read_blocks
from tfray.units.files import find_files
from tfray.units.plan import plan_units
files = find_files([sys.argv[1]])
schema = declare_schema(files, {"source"})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [block for unit in plan_units(files, 1, 1 << 20) for block in read_blocks(unit, schema, {"source"})]
print(sum(len(block.table) for block in rows), sum(len(block.errors) for block in rows))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.txt"])
def test_a_line_of_200_mb_does_not_take_200_mb_of_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    header = b"source\n" if path.suffix in (".csv", ".tsv") else b""
    with gzip.open(path, "wb", 1) if name.endswith("gz") else path.open("wb") as file:
        file.write(header + b'{"source": "a"}\n{"source": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"source": "b"}\n')
    ended = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    counts, kilobytes = ended.stdout.splitlines()
    assert counts == "3 1"
    assert int(kilobytes) < 100_000


@given(
    rows=st.lists(st.lists(st.text("ab ,\u00e9", max_size=5), min_size=2, max_size=2), max_size=8),
    place=st.integers(0, 8),
    broken=st.sampled_from(['"open', 'x,"open', '"a"b,c', 'x,"open and, more', "one", "one,two,three"]),
)
def test_every_good_record_after_a_broken_one_survives(
    tmp_path: Path, rows: list[list[str]], place: int, broken: str
) -> None:
    place = min(place, len(rows))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("source", "target"), *rows[:place]])
    text.write(broken + "\n")
    writer.writerows(rows[place:])
    found = read_bytes(tmp_path / "a.csv", text.getvalue().encode(), frozenset({"source", "target"}))
    good = [list(row.values()) for index, row in enumerate(found.table.to_pylist()) if index not in found.errors]
    assert good == rows
    assert list(found.errors) == [place]


def test_an_open_quote_costs_its_line_and_not_the_rest_of_the_file(tmp_path: Path) -> None:
    good = "".join(f"{number},plain text\n" for number in range(5000))
    rows = read_bytes(tmp_path / "a.csv", f'source,target\n{good}x,"open\n{good}'.encode())
    assert list(rows.errors) == [5000] and rows.errors[5000].startswith("bad_csv")
    assert rows.table["source"].to_pylist() == [*map(str, range(5000)), None, *map(str, range(5000))]


# ---- files that cannot be read


def read_until_damage(path: Path) -> tuple[list, list[tuple[str, str]]]:
    """Return the source texts that can be read, with their numbers, and the damages met."""
    files = find_files([str(path)])
    texts, damages = [], []
    for unit in plan_units(files, 1 << 20, 1 << 20):
        try:
            for rows in read_blocks(unit, pa.schema({"source": pa.string()}), {"source"}):
                texts += list(enumerate(rows.table["source"].to_pylist(), rows.first_row))
        except DamagedFile as error:
            damages.append((error.path, error.reason))
    return texts, damages


def numbered(lines: int) -> bytes:
    return b"".join(json.dumps({"source": f"{n} {os.urandom(30).hex()}"}).encode() + b"\n" for n in range(lines))


@pytest.mark.parametrize(
    ("name", "compress", "cut", "readable"),
    [
        ("cut.jsonl.gz", gzip.compress, 20_000, 4000),
        ("no_checksum.jsonl.gz", gzip.compress, 4, 9000),
        ("cut.jsonl.bz2", bz2.compress, 100, 0),
        ("cut.jsonl.zst", lambda data: pa.compress(data, "zstd", asbytes=True), 20_000, 4000),
        ("plain.jsonl.gz", bytes, 0, 0),
        ("plain.jsonl.zst", bytes, 0, 0),
    ],
)
def test_a_damaged_archive_gives_what_can_be_read_and_then_its_name(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes], cut: int, readable: int
) -> None:
    data = numbered(10_000)
    packed = compress(data)
    (tmp_path / name).write_bytes(packed[: len(packed) - cut])
    texts, damages = read_until_damage(tmp_path / name)
    assert [path for path, _ in damages] == [str(tmp_path / name)]
    assert readable <= len(texts) < 10_000 or name.startswith("no_checksum")
    expected = [json.loads(line)["source"] for line in data.splitlines()]
    assert texts == list(enumerate(expected[: len(texts)]))


def uncompressed_before_damage(packed: bytes, make: Callable[[], Any]) -> bytes:
    """Return what a decompressor of Python's gives, byte by byte, until it fails."""
    found, decompressor = bytearray(), make()
    with contextlib.suppress(OSError, zlib.error):
        for at in range(len(packed)):
            found += decompressor.decompress(packed[at : at + 1])
    return bytes(found)


@pytest.mark.parametrize("rows", [300, 20_000])
@pytest.mark.parametrize("damage", ["cut", "changed"])
@pytest.mark.parametrize(
    ("ending", "compress", "make"),
    [
        ("gz", gzip.compress, lambda: zlib.decompressobj(31)),
        ("bz2", lambda data: bz2.compress(data, 1), bz2.BZ2Decompressor),
    ],
)
def test_every_whole_line_before_the_damage_of_an_archive_is_read(
    tmp_path: Path, rows: int, damage: str, ending: str, compress: Callable[[bytes], bytes], make: Callable[[], Any]
) -> None:
    data = numbered(rows)
    packed = compress(data)
    place = len(packed) * 9 // 10
    packed = packed[:place] + (b"" if damage == "cut" else b"\xff" * 64 + packed[place + 64 :])
    (tmp_path / f"a.jsonl.{ending}").write_bytes(packed)
    texts, damages = read_until_damage(tmp_path / f"a.jsonl.{ending}")
    found = uncompressed_before_damage(packed, make).splitlines(keepends=True)
    whole = takewhile(lambda pair: pair[0] == pair[1], zip(found, data.splitlines(keepends=True), strict=False))
    expected = [json.loads(line)["source"] for line, _ in whole]
    assert len(damages) == 1
    assert [text for _, text in texts][: len(expected)] == expected
    assert len(expected) >= rows * 8 // 10 or (ending, rows) == ("bz2", 300), "which is one block"


def test_open_quotes_before_the_damage_of_an_archive_cost_their_lines_and_no_good_one(tmp_path: Path) -> None:
    packed = gzip.compress(b'a,source\n1,first\nx,"open\na","open, too\n4,last\n')
    (tmp_path / "a.csv.gz").write_bytes(packed[:-8])  # without its checksum
    texts, damages = read_until_damage(tmp_path / "a.csv.gz")
    assert [text for _, text in texts] == ["first", None, None, "last"]
    assert len(damages) == 1


def test_parallel_text_with_a_damaged_side_gives_the_pairs_before_the_damage(tmp_path: Path) -> None:
    lines = [f"{number} {os.urandom(20).hex()}\n" for number in range(5000)]
    (tmp_path / "a.en").write_text("".join(lines))
    (tmp_path / "a.de.gz").write_bytes(gzip.compress("".join(lines).encode())[:-20_000])
    files = find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de.gz"])
    (unit,) = plan_units(files, 1, 100)
    pairs = []
    with pytest.raises(DamagedFile, match=r"a\.de\.gz"):
        for rows in read_blocks(unit, pa.schema({"source": pa.string(), "target": pa.string()}), {"source", "target"}):
            pairs += rows.table.to_pylist()
    assert 1000 < len(pairs) < 5000
    assert all(pair["source"] == pair["target"] == line[:-1] for pair, line in zip(pairs, lines, strict=False))


def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"source": [f"{number} {os.urandom(20).hex()}" for number in range(4000)]})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle - 500 : middle + 500] = b"\xff" * 1000
    data[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    texts, damages = read_until_damage(path)
    assert len(damages) == 1 and "row group 1" in damages[0][1]
    expected = table["source"].to_pylist()
    assert texts == [(n, expected[n]) for n in range(4000) if not 1000 <= n < 2000]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.en", "a.de"])
def test_a_file_that_vanishes_after_planning_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (tmp_path / "a.en").write_text("x\n")
    if name == "a.parquet":
        pq.write_table(pa.table({"source": ["x"]}), path)
    else:
        path.write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b'{"source": "x"}\n')
    files = find_files([f"{tmp_path}/a.en"], [str(path)]) if name == "a.de" else find_files([str(path)])
    (unit,) = plan_units(files, 10, 10)
    path.unlink()
    with pytest.raises(DamagedFile, match=name):
        read_unit(unit, pa.schema({"source": pa.string()}), {"source"})


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "a.csv", "a.tsv"])
def test_a_file_that_shrinks_after_planning_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_lines(path, ["x"] * 10, "\n")
    (unit,) = plan_units(find_files([str(path)]), 10, 10)
    write_lines(path, ["x"] * 3, "\n")
    with pytest.raises(DamagedFile, match=rf"{name}.* (lost rows|shrunk)"):
        read_unit(unit, pa.schema({"source": pa.string()}), {"source"})


class Failing:
    """A storage that fails some times, each time after it has given a few bytes, and then perhaps for ever."""

    is_down = False

    def __init__(self, failures: int, patch: pytest.MonkeyPatch) -> None:
        self.failures = failures
        patch.setattr(places, "FIRST_PAUSE", 0.0)
        real = reading.open_input
        patch.setattr(reading, "open_input", lambda path: pa.PythonFile(FailingFile(self, real(path)), mode="r"))


class FailingFile:
    def __init__(self, storage: Failing, file: pa.NativeFile) -> None:
        self.storage, self.file, self.given = storage, file, 0

    def read(self, size: int = -1) -> bytes:
        if self.storage.is_down or (self.given > 5000 and self.storage.failures):
            self.storage.failures -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        data = self.file.read(size)
        self.given += len(data)
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv"])
def test_a_storage_that_fails_for_a_while_costs_no_row_and_one_that_stays_away_is_no_damage(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    texts = [f"{number} {os.urandom(30).hex()}" for number in range(2000)]
    lines = "".join(json.dumps({"source": text}) + "\n" for text in texts).encode()
    if name == "a.parquet":
        pq.write_table(pa.table({"source": texts}), path, row_group_size=500)
    elif name == "a.csv":
        path.write_text("source\n" + "".join(f"{text}\n" for text in texts))
    else:
        path.write_bytes(pa.compress(lines, "zstd", asbytes=True) if name.endswith("zst") else lines)
        if name.endswith("gz"):
            path.write_bytes(gzip.compress(lines))
    (unit,) = plan_units(find_files([str(path)]), 1 << 20, 1 << 20)
    storage = Failing(1, monkeypatch)
    schema = pa.schema({"source": pa.string()})
    assert read_unit(unit, schema, {"source"}).table["source"].to_pylist() == texts and storage.failures == 0
    storage.is_down = True
    with pytest.raises(StorageFailure, match=rf"{name}.*Stale.*the same command"):
        read_unit(unit, schema, {"source"})


def test_a_damaged_file_is_the_same_error_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(DamagedFile("/a.gz", "truncated")))
    assert (error.path, error.reason) == ("/a.gz", "truncated")
    assert str(error) == "'/a.gz' cannot be read: truncated"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt"])
def test_an_empty_file_has_no_rows_and_nothing_against_it(tmp_path: Path, name: str) -> None:
    rows = read_bytes(tmp_path / name, b"")
    assert len(rows.table) == 0 and not rows.errors


def test_whole_numbers_that_a_decimal_of_another_file_never_holds_leave_the_rest_of_their_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": ["a", "b", "c"], "price": [3, None, 4]}), tmp_path / "0.parquet")
    price = pa.array([Decimal("9.99")], pa.decimal128(10, 2))
    pq.write_table(pa.table({"source": ["d"], "price": price}), tmp_path / "1.parquet")
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table["source"].to_pylist() == ["a", "b", "c", "d"]
    assert rows.table["price"].to_pylist() == [None, None, None, Decimal("9.99")]
    assert {index: error.partition(":")[0] for index, error in rows.errors.items()} == {0: "bad_type", 2: "bad_type"}


def test_blocks_are_as_small_where_a_columns_name_holds_a_full_stop(tmp_path: Path) -> None:
    texts = ["".join(random.Random(row).choices("abcdefgh", k=40_000)) for row in range(400)]
    counts = []
    for name in ("text", "review.text"):
        pq.write_table(pa.table({name: texts}), tmp_path / "a.parquet")
        files = find_files([str(tmp_path / "a.parquet")])
        (unit,) = plan_units(files, 1000, 1000)
        counts.append(len([*read_blocks(unit, declare_schema(files, {name}), {name})]))
    assert counts[0] == counts[1] > 1


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (pa.int8(), [0, 127, -128], [128, 1.5, True, "x", [1]]),
        (pa.uint16(), [65535], [-1, 65536]),
        (pa.float32(), [0.5, 3, 16777216], [16777217, 0.1]),
        (pa.decimal128(4, 1), [12], [12345]),
        (pa.date32(), [], [1, 0.5]),
    ],
)
def test_a_json_field_that_begins_with_nulls_fits_the_column_of_another_file(
    tmp_path: Path, type_: pa.DataType, good: list, bad: list
) -> None:
    pq.write_table(pa.table({"source": ["p"], "n": pa.array([None], type_)}), tmp_path / "0.parquet")
    values = [None] * 1000 + good + bad
    lines = "".join(json.dumps({"source": f"s{row}", "n": value}) + "\n" for row, value in enumerate(values))
    (tmp_path / "1.jsonl").write_text(lines)
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table.schema.field("n").type == type_
    assert rows.table["n"].to_pylist()[1001:] == good + [None] * len(bad)
    assert sorted(rows.errors) == [*range(1001 + len(good), len(values) + 1)]
    assert rows.table["source"].null_count == 0


@pytest.mark.parametrize("value", [2**54, -(2**63), 2**53 + 1])
def test_a_whole_number_that_arrow_takes_for_no_float_costs_only_its_own_value(tmp_path: Path, value: int) -> None:
    values = [1.5, value, 2**53, 0.25]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"source": "s", "n": n}) + "\n" for n in values))
    rows = read_files(find_files([str(tmp_path)]), {"source"})
    assert rows.table["n"].to_pylist() == [1.5, None, float(2**53), 0.25]
    assert list(rows.errors) == [1] and rows.errors[1].startswith("bad_type: n=")
