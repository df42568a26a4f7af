"""Reading: one row for each line of every format, and an error with a name for each that is no good."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.corpus.read import DamagedFile, Rows, declare_schema, read_unit
from tfray.errors import InputError
from tfray.units.plan import InputFile, find_files, plan_units

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
    errors = {start + index: error for start, part in zip(starts, parts) for index, error in part.errors.items()}
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
        ("a.csv", b"x" * 200_000 + b",b,c\n", [("bad_csv", None), (None, "z")]),
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


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\n", "must name the columns"),
        (b"\xe9,b\n", "not UTF-8"),
        (b'"open,b\n', "must name the columns"),
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


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["source", "source"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet' has several columns named source"):
        read_files(find_files([str(tmp_path)]), {"source"})


def test_files_whose_columns_disagree_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "a", "id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"source": "a", "id": "x"}\n')
    with pytest.raises(InputError, match=r"b\.jsonl' has other column types"):
        declare_schema(find_files([str(tmp_path)]), {"source"})


# ---- files that cannot be read


def incompressible(lines: int) -> bytes:
    return b"".join(json.dumps({"source": os.urandom(30).hex()}).encode() + b"\n" for _ in range(lines))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(incompressible(3000))[:-100]),
        ("no_checksum.jsonl.gz", gzip.compress(incompressible(3000))[:-4]),
        ("cut.jsonl.bz2", bz2.compress(incompressible(3000))[:-100]),
        ("cut.jsonl.zst", pa.compress(incompressible(3000), "zstd", asbytes=True)[:-100]),
        ("cut.csv.gz", gzip.compress(b"source\n" + incompressible(3000))[:-100]),
        ("plain.jsonl.gz", b'{"source": "not compressed"}\n'),
        ("plain.jsonl.zst", b'{"source": "not compressed"}\n'),
        ("plain.csv.bz2", b"source\nnot compressed\n"),
    ],
)
def test_a_damaged_archive_is_refused_by_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(InputError, match=name):
        read_bytes(tmp_path / name, data)


def test_a_parquet_file_with_damaged_pages_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"source": [f"{n} " * 9 for n in range(2000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[100:2000] = b"\xab" * 1900
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.parquet"):
        read_files(find_files([str(path)]), {"source"})


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.en", "a.de"])
def test_a_file_that_vanishes_after_planning_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (tmp_path / "a.en").write_text("x\n")
    if name == "a.parquet":
        pq.write_table(pa.table({"source": ["x"]}), path)
    else:
        path.write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b'source\n"x"\n')
    files = find_files([f"{tmp_path}/a.en"], [str(path)]) if name == "a.de" else find_files([str(path)])
    (unit,) = plan_units(files, 1, 10)
    path.unlink()
    with pytest.raises(DamagedFile, match=name):
        read_unit(unit, pa.schema({"source": pa.string()}), {"source"})


def test_a_parquet_file_that_shrinks_after_planning_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"source": ["x"] * 10}), path)
    (unit,) = plan_units(find_files([str(path)]), 10, 10)
    pq.write_table(pa.table({"source": ["x"] * 3}), path)
    with pytest.raises(DamagedFile, match=r"a\.parquet.* lost rows"):
        read_unit(unit, pa.schema({"source": pa.string()}), {"source"})
