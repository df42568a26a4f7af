"""JSON lines -> fields: one object a line, or an error with a name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pyarrow as pa

from tfray.corpus.lines import Lines, read_lines
from tfray.corpus.rows import Block, DamagedFile, decode, is_encodable, json_kind
from tfray.units.files import InputFile
from tfray.units.plan import Unit

SAMPLE_LINES = 1000  # of each file, to find its fields and their types
SAMPLE_BYTES = 16 << 20
PARSED_TOGETHER = 1024  # lines; objects of many more do not stay in the processor's cache


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)
SCAN: Callable[[str, int], tuple[object, int]] = DECODER.scan_once  # type: ignore[attr-defined]


def read_jsonl(unit: Unit, names: list[str], are_all: bool = False) -> Iterator[Block]:
    """Yield a unit's objects, the named fields as columns; where these are all, an object with another has an error."""
    known = set(names)
    for lines in read_lines(unit.path, unit.compression, unit.start, unit.end):
        columns: dict[str, list] = {name: [] for name in names}
        errors: dict[int, str] = {}
        for start in range(0, len(lines.texts), PARSED_TOGETHER):
            records, bad = parse_lines(lines.after(start).first(PARSED_TOGETHER))
            errors.update({start + index: error for index, error in bad.items()})
            if are_all:
                others = {start + index: record.keys() - known for index, record in enumerate(records)}
                errors.update({index: unknown(fields) for index, fields in others.items() if fields})
            for name, values in columns.items():
                values += [record.get(name) for record in records]
        yield Block(columns, len(lines.texts), errors)  # type: ignore[arg-type]


def unknown(fields: set[str]) -> str:
    """Return the error of an object with fields that are no columns."""
    names = ", ".join(map(repr, sorted(fields)))
    return f"unknown_field: {names:.200} is not among the first {SAMPLE_LINES} lines of any file, and is left out"


def parse_lines(lines: Lines) -> tuple[list[dict], dict[int, str]]:
    """Return each line's object (an empty one where there is an error) and the errors by their index."""
    records, errors = [], dict(lines.errors)
    for index, line in enumerate(lines.texts):
        try:
            text = line.rstrip(b" \t\r").decode()  # type: ignore[union-attr]  # what fails here has its error below
            record, end = SCAN(text, 0)
            if end == len(text) and isinstance(record, dict):
                records.append(record)
                continue
        except (AttributeError, ValueError, StopIteration, RecursionError):
            pass
        record, error = parse_line(line)
        records.append(record)
        if error:
            errors.setdefault(index, error)
    return records, errors


def parse_line(line: bytes | None) -> tuple[dict, str | None]:
    """Return a JSON line's object, or an empty one and the error."""
    text, error = decode(line)
    if text is None:
        return {}, error
    if not text.strip():
        return {}, "blank_line: no JSON object in the line"
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return {}, f"bad_json: {error}"
    if not isinstance(value, dict):
        return {}, f"bad_json: {type(value).__name__} where an object belongs"
    return value, None


def infer_json_fields(file: InputFile) -> list[tuple[str, pa.DataType]]:
    """Return a file's fields and types by its first lines; mixed types become JSON text."""
    kinds: dict[str, set[str]] = {}
    for record in sample_records(file):
        for name, value in record.items():
            if is_encodable(name):
                kinds.setdefault(name, set()).add(json_kind(value))
    return [(name, json_type(kinds[name])) for name in kinds]


def sample_records(file: InputFile) -> list[dict]:
    """Return the first objects of a file; raises DamagedFile where not one line can be read."""
    records: list[dict] = []
    size = 0
    try:
        for lines in read_lines(file.path, file.compression):
            lines = lines.first(SAMPLE_LINES - len(records))
            records += parse_lines(lines)[0]
            size += sum(map(len, filter(None, lines.texts)))
            if len(records) == SAMPLE_LINES or size > SAMPLE_BYTES:
                break
    except DamagedFile:
        if not records:
            raise
    return records


def json_type(kinds: set[str]) -> pa.DataType:
    """Return the column type that holds every kind that was seen."""
    seen = frozenset(kinds - {"null"})
    simple: dict[frozenset[str], pa.DataType] = {
        frozenset(): pa.null(),
        frozenset({"int"}): pa.int64(),
        frozenset({"float"}): pa.float64(),
        frozenset({"int", "float"}): pa.float64(),
        frozenset({"bool"}): pa.bool_(),
    }
    return simple.get(seen, pa.string())
