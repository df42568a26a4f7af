"""Units -> rows: Parquet, JSONL, CSV, TSV, plain and parallel text, compressed or not.

A row that cannot be read becomes a row of nulls with its error, so that rows and positions stay
aligned with the file whatever stands in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.errors import InputError
from tfray.units.plan import InputFile, Unit, split_compression

SAMPLE_LINES = 1000  # of each JSONL file, to find its fields and their types
SAMPLE_BYTES = 16 << 20


class Rows(NamedTuple):
    """The rows of one unit."""

    table: pa.Table
    """The declared columns."""
    errors: list[str | None]
    """`kind: message` for each row that could not be read as declared."""
    positions: list[int]
    """Row number in the file, from 0; in lines of a cut file, from the unit's first line."""


class Line(NamedTuple):
    """One line of a text file, without its end, or the reason why there is none."""

    text: str | None
    error: str | None


def declare_schema(files: list[InputFile], text_columns: set[str], needed: set[str] | None = None) -> pa.Schema:
    """Return the needed columns (default: all) of all files together; raises InputError where two files disagree."""
    schema = pa.schema([])
    for file in files:
        found = pa.schema(
            [field for field in file_schema(file, text_columns) if needed is None or field.name in needed]
        )
        try:
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"{file.path!r} has other column types than the files before it: {error}") from error
    text = {field.name: pa.string() for field in schema if pa.types.is_null(field.type)}
    return pa.schema([(field.name, text.get(field.name, field.type)) for field in schema])


def file_schema(file: InputFile, text_columns: set[str]) -> pa.Schema:
    """Return the columns of one file; raises InputError where two have the same name."""
    if file.schema is not None:
        fields = [(field.name, plain_type(field.type)) for field in file.schema]
    elif file.format == "jsonl":
        fields = infer_json_fields(file, text_columns)
    elif file.format in ("csv", "tsv"):
        fields = [(name, pa.string()) for name in read_header(file)]
    else:
        fields = [(name, pa.string()) for name in (["source", "target"] if file.target_path else ["source"])]
    repeated = [name for name, count in Counter(name for name, _ in fields).items() if count > 1]
    if repeated:
        raise InputError(f"{file.path!r} has several columns named {', '.join(repeated)}; rename all but one")
    return pa.schema(fields)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return `string` for the ways in which Parquet's writers hold text, other types as they are."""
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_string(value_type) or pa.types.is_large_string(value_type) else kind


def read_unit(unit: Unit, schema: pa.Schema, text_columns: set[str]) -> Rows:
    """Return a unit's rows in the declared columns.

    Values of text columns must be text; in other JSON columns a value that is not of the declared
    type becomes null with an error.
    """
    if unit.format == "parquet":
        with readable(unit.path):
            table = read_parquet_range(unit, schema)
        return Rows(*refuse_bad_text(table), list(range(unit.start, unit.stop)))
    if unit.format == "jsonl":
        records = [parse_record(line) for line in read_lines(unit)]
    elif unit.format in ("csv", "tsv"):
        records = list(read_delimited(unit))
    else:
        records = list(read_text(unit))
    return assemble(records, schema, text_columns)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Raise InputError with the file's name for whatever a missing or damaged file raises."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path!r} cannot be read: {error}; replace or remove it") from error


def read_parquet_range(unit: Unit, schema: pa.Schema) -> pa.Table:
    """Return a range of rows, reading only the row groups and columns that it needs."""
    with storage.open_input(unit.path) as source:
        file = pq.ParquetFile(source)
        present = [name for name in schema.names if name in file.schema_arrow.names]
        groups, first, row = [], 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < unit.stop and row + rows > unit.start:
                first = row if not groups else first
                groups.append(group)
            row += rows
        table = file.read_row_groups(groups, columns=present)
    table = table.slice(unit.start - first, unit.stop - unit.start)
    if len(table) != unit.stop - unit.start:
        raise InputError(f"{unit.path!r} has lost rows since the job was planned; start the job again")
    columns = [
        table[field.name].cast(field.type) if field.name in present else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def refuse_bad_text(table: pa.Table) -> tuple[pa.Table, list[str | None]]:
    """Return a table with null where text is not UTF-8 (Parquet's readers do not check), and each row's error."""
    errors: list[str | None] = [None] * len(table)
    for index, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        try:
            table[index].validate(full=True)
        except pa.ArrowInvalid:
            texts = [decode(value) for value in table[index].cast(pa.binary()).to_pylist()]
            errors = [error or text.error for error, text in zip(errors, texts, strict=True)]
            table = table.set_column(index, field, pa.array([text.text for text in texts], pa.string()))
    return table, errors


def read_lines(unit: Unit) -> Iterator[Line]:
    """Yield the lines that begin in a unit's byte range (all of a compressed file's)."""
    with readable(unit.path), open_text(unit.path, unit.compression) as file:
        position = 0
        if unit.start and not unit.compression:
            file.seek(unit.start - 1)
            position = unit.start - 1 + len(file.readline())
        while unit.compression or position < unit.stop:
            line = file.readline()
            if not line:
                return
            yield decode_line(line, is_first=position == 0)
            position += len(line)


def open_text(path: str, compression: str | None) -> io.BufferedReader:
    """Return a buffered stream of a file's uncompressed bytes."""
    if compression is None:
        return io.BufferedReader(storage.open_input(path), 1 << 20)  # type: ignore[arg-type]
    fs, inner = storage.filesystem(path)
    return io.BufferedReader(fs.open_input_stream(inner, compression=compression), 1 << 20)  # type: ignore[arg-type]


def decode_line(line: bytes, is_first: bool) -> Line:
    """Return a line as text; only a line feed ends it (U+2028 is text), a byte-order mark goes."""
    text, error = decode(line, "utf-8-sig" if is_first else "utf-8")
    return Line(text.removesuffix("\n").removesuffix("\r") if text else text, error)


def decode(data: bytes | None, encoding: str = "utf-8") -> Line:
    """Return bytes as text, or none and the error."""
    try:
        return Line(None if data is None else data.decode(encoding), None)
    except UnicodeDecodeError as error:
        return Line(None, f"bad_utf8: byte {error.start}, 0x{error.object[error.start]:02x}, is not UTF-8")


Record = tuple[dict[str, object], str | None]


def parse_record(line: Line) -> Record:
    """Return a JSON line's fields, or none and the error."""
    if line.text is None:
        return {}, line.error
    if not line.text.strip():
        return {}, "blank_line: no JSON object in the line"
    try:
        value = json.loads(line.text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        return {}, f"bad_json: {error}"
    if not isinstance(value, dict):
        return {}, f"bad_json: {type(value).__name__} where an object belongs"
    return value, None


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")


def read_delimited(unit: Unit | InputFile) -> Iterator[Record]:
    """Yield a CSV or TSV file's records by the names in its first line."""
    lines = read_fields(unit)
    header, _ = next(lines, ([], None))
    for fields, error in lines:
        if error:
            yield {}, error
        elif not fields:
            yield {}, "blank_line: no fields in the line"
        elif len(fields) != len(header):
            yield {}, f"bad_{unit.format}: {len(fields)} fields where the header has {len(header)}"
        else:
            yield dict(zip(header, fields, strict=True)), None


def read_fields(file: Unit | InputFile) -> Iterator[tuple[list[str], str | None]]:
    """Yield the fields of each line, header included, or none and the error.

    CSV fields in quotes may go over lines; TSV knows no quotes. Bytes that are not UTF-8 become lone
    surrogates, which `fit` refuses in the field where they are.
    """
    with readable(file.path), open_text(file.path, file.compression) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        if file.format == "tsv":
            for line in lines:
                text = line.removesuffix("\n").removesuffix("\r")
                yield text.split("\t") if text else [], None
            return
        reader = csv.reader(lines, strict=True)  # else an open quote makes one good row of all that follows
        while True:
            try:
                yield next(reader), None
            except StopIteration:
                return
            except csv.Error as error:
                yield [], f"bad_csv: {error}"


def read_header(file: InputFile) -> list[str]:
    """Return the column names in a CSV or TSV file's first line."""
    names, error = next(read_fields(file), ([], None))
    if not names or not all(map(is_encodable, names)):
        reason = error or ("it is not UTF-8" if names else "it is blank")
        raise InputError(f"the first line of {file.path!r} must name the columns: {reason}")
    return names


def read_text(unit: Unit) -> Iterator[Record]:
    """Yield a plain text unit's lines as `source`, with those of its target side as `target`."""
    if unit.target_path is None:
        for line in read_lines(unit):
            yield {"source": line.text}, line.error
        return
    sources = list(read_lines(unit))
    targets = list(read_lines(target_side(unit)))
    if len(sources) != len(targets):
        raise InputError(
            f"parallel text must have as many lines on both sides; {unit.path!r} has {len(sources)}, "
            f"{unit.target_path!r} has {len(targets)}"
        )
    for source, target in zip(sources, targets, strict=True):
        yield {"source": source.text, "target": target.text}, source.error or target.error


def target_side(unit: Unit) -> Unit:
    """Return the unit that is the whole target file of parallel text."""
    path = str(unit.target_path)
    return Unit(unit.index, path, "text", split_compression(path)[1], 0, storage.file_size(path), unit.rows)


def infer_json_fields(file: InputFile, text_columns: set[str]) -> list[tuple[str, pa.DataType]]:
    """Return a JSONL file's fields and types by its first lines; mixed types become JSON text."""
    stop = min(file.size, SAMPLE_BYTES)
    head = Unit(0, file.path, "jsonl", file.compression, 0, stop, 0)
    kinds: dict[str, set[str]] = {}
    for count, line in enumerate(read_lines(head)):
        if count == SAMPLE_LINES:
            break
        for name, value in parse_record(line)[0].items():
            if is_encodable(name):
                kinds.setdefault(name, set()).add(json_kind(value))
    return [(name, pa.string() if name in text_columns else json_type(kinds[name])) for name in kinds]


def json_kind(value: object) -> str:
    """Return the name of a JSON value's type, `other` for what no simple column holds."""
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "other"
    return type(value).__name__


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


def assemble(records: list[Record], schema: pa.Schema, text_columns: set[str]) -> Rows:
    """Return records as the declared columns, each misfit a null with its error."""
    columns: dict[str, list[object]] = {field.name: [] for field in schema}
    errors = []
    for record, error in records:
        for field in schema:
            value, misfit = fit(record.get(field.name), field, field.name in text_columns)
            columns[field.name].append(value)
            error = error or misfit
        errors.append(error)
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    return Rows(table, errors, list(range(len(records))))


def fit(value: object, field: pa.Field, is_text: bool) -> tuple[object, str | None]:
    """Return a value as its column holds it, or null and the error."""
    if value is None:
        return None, None
    if pa.types.is_string(field.type):
        if not isinstance(value, str):
            if is_text:
                return None, f"not_text: {field.name} is {type(value).__name__}, not text"
            value = json.dumps(value, ensure_ascii=True)
        if not is_encodable(value):
            return None, f"bad_utf8: {field.name} holds what UTF-8 cannot say"
        return value, None
    return fit_number(value, field)


def fit_number(value: object, field: pa.Field) -> tuple[object, str | None]:
    """Return a JSON number or boolean as its column holds it, or null and the error."""
    kind = json_kind(value)
    allowed = {"int64": {"int"}, "double": {"int", "float"}, "bool": {"bool"}}.get(str(field.type), set())
    # A whole number above 2**53 is not itself as a float; Arrow would refuse the whole column.
    if kind not in allowed or (isinstance(value, int) and str(field.type) == "double" and float(value) != value):
        return None, f"bad_type: {field.name}={value!r:.80} is not {field.type}"
    return value, None


def is_encodable(text: str) -> bool:
    """Say whether text can be written as UTF-8 (no lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
