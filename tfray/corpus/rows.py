"""Rows as they come from a file: declared columns, sparse errors, and numbers that people can look up."""

from __future__ import annotations

import json
from typing import NamedTuple

import pyarrow as pa

BLOCK_ROWS = 8192
BLOCK_BYTES = 4 << 20  # a block is closed at this size; the longest line may come on top


class Rows(NamedTuple):
    """Consecutive rows of one file."""

    table: pa.Table
    """The declared columns."""
    errors: dict[int, str]
    """Index in the table -> `kind: message`, for rows that could not be read as declared."""
    first_row: int
    """Number in the file of the table's first row, from 0."""


class DamagedFile(Exception):
    """A file that cannot be read, or not any further."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path!r} cannot be read: {self.reason}"


class Block(NamedTuple):
    """Some lines or records of a text file, by column, before their types are looked at."""

    columns: dict[str, list | pa.Array]
    rows: int
    errors: dict[int, str]


NONE = type(None)
PLAIN = {"string": {str, NONE}, "int64": {int, NONE}, "double": {float, NONE}, "bool": {bool, NONE}}


def assemble(block: Block, schema: pa.Schema, text_columns: set[str], first_row: int) -> Rows:
    """Return a block as the declared columns, each misfit a null with its error."""
    arrays, errors = [], dict(block.errors)
    for field in schema:
        values = block.columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(block.rows, field.type))
        elif not isinstance(values, list):
            arrays.append(values.cast(field.type))
        else:
            array, misfits = fit_column(values, field, field.name in text_columns)
            arrays.append(array)
            errors = {**misfits, **errors}
    return Rows(pa.table(arrays, schema=schema), errors, first_row)


def fit_column(values: list, field: pa.Field, is_text: bool) -> tuple[pa.Array, dict[int, str]]:
    """Return values as a column, and the errors of those that do not fit by their index."""
    if set(map(type, values)) <= PLAIN.get(str(field.type), {NONE}):
        try:
            return pa.array(values, field.type), {}
        except (UnicodeEncodeError, OverflowError):
            pass  # some value does not fit: look at each
    fitted = [fit(value, field, is_text) for value in values]
    errors = {index: error for index, (_, error) in enumerate(fitted) if error}
    return pa.array([value for value, _ in fitted], field.type), errors


def fit(value: object, field: pa.Field, is_text: bool) -> tuple[object, str | None]:
    """Return a value as its column holds it, or null and the error."""
    if value is None:
        return None, None
    try:
        return fit_json(value, field, is_text)
    except RecursionError:  # to write a value takes a little more of the stack than to read it
        return None, f"bad_json: {field.name} is nested too deeply"


def fit_json(value: object, field: pa.Field, is_text: bool) -> tuple[object, str | None]:
    """Return a value of JSON as its column holds it, or null and the error."""
    if pa.types.is_string(field.type):
        if not (is_text or isinstance(value, str)):
            value = json.dumps(value, ensure_ascii=True)
        error = unreadable(field.name, value)
        return (None, error) if error else (value, None)
    return fit_number(value, field)


def fit_number(value: object, field: pa.Field) -> tuple[object, str | None]:
    """Return a JSON number or boolean as its column holds it, or null and the error."""
    if is_held(value, field.type):
        return value, None
    return None, f"bad_type: {field.name}={value!r:.80} is not {field.type}"


def is_held(value: object, type_: pa.DataType) -> bool:
    """Say whether a column's type (int64, but also another file's int8 or decimal) holds a JSON value as it is.

    A whole number above 2**53 is not itself as a float; Arrow would refuse the whole column.
    """
    kind = json_kind(value)
    if pa.types.is_boolean(type_) or kind == "bool":
        return pa.types.is_boolean(type_) and kind == "bool"
    if kind not in ({"int"} if pa.types.is_integer(type_) else {"int", "float"}):
        return False
    try:
        held = pa.scalar(value, type_).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return False
    return held == value or value != value  # NaN is no number's equal


def json_kind(value: object) -> str:
    """Return the name of a JSON value's type, `other` for what no simple column holds."""
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "other"
    return type(value).__name__


def unreadable(name: str, value: object) -> str | None:
    """Return why a value is no text that can be written, as `kind: message`, or None."""
    if not isinstance(value, str):
        return f"not_text: {name} is {type(value).__name__}, not text"
    return None if is_encodable(value) else f"bad_utf8: {name} holds what UTF-8 cannot say"


def is_encodable(text: str) -> bool:
    """Say whether text can be written as UTF-8 (no lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(data: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Return binary data as text, null where it is not UTF-8, and the errors by their index."""
    text = data.view(pa.string())
    try:
        text.validate(full=True)
        return text, {}
    except pa.ArrowInvalid:
        decoded = [decode(value) for value in data.to_pylist()]
        errors = {index: error for index, (_, error) in enumerate(decoded) if error}
        return pa.array([text for text, _ in decoded], pa.string()), errors


def decode(data: bytes | None) -> tuple[str | None, str | None]:
    """Return bytes as text, or none and the error."""
    try:
        return None if data is None else data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return None, f"bad_utf8: byte {error.start}, 0x{error.object[error.start]:02x}, is not UTF-8"
