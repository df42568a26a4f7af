"""Which columns of the input are source and target, and what the target is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pyarrow as pa

from tfray.corpus.read import file_schema
from tfray.errors import InputError
from tfray.units.plan import InputFile

Task = Literal["translation", "classification"]
SOURCE_NAMES = ("source", "text")
TARGET_NAMES = ("target", "label")


class Columns(NamedTuple):
    """The columns of a corpus."""

    source: str
    target: str
    task: Task


def choose_columns(files: list[InputFile], source: str | None, target: str | None, task: str = "auto") -> Columns:
    """Return the corpus' columns; raises InputError naming those that there are."""
    schema = file_schema(files[0], set())
    source = choose(source, SOURCE_NAMES, schema, "source_column", files[0].path)
    target = choose(target, TARGET_NAMES, schema, "target_column", files[0].path)
    if task == "auto":
        task = "classification" if target == "label" else "translation"
    for file in files:
        check_columns(file, {source} if task == "classification" else {source, target}, {source, target})
    return Columns(source, target, task)  # type: ignore[arg-type]


def choose_source(files: list[InputFile], source: str | None) -> str:
    """Return the column of the source text; raises InputError naming those that there are."""
    schema = file_schema(files[0], set())
    source = choose(source, SOURCE_NAMES, schema, "source_column", files[0].path)
    for file in files:
        check_columns(file, {source}, {source})
    return source


def choose(wanted: str | None, usual: tuple[str, ...], schema: pa.Schema, setting: str, path: str) -> str:
    """Return the wanted column, or the first usual one that is there."""
    candidates = usual if wanted is None else (wanted,)
    for name in candidates:
        if name in schema.names:
            return name
    raise InputError(
        f"{setting}={wanted or ' or '.join(usual)!r} is not in {path!r}; its columns are "
        f"{', '.join(schema.names) or '(none)'}; name one of them"
    )


def check_columns(file: InputFile, text: set[str], needed: set[str]) -> None:
    """Raise InputError where a file lacks a column, or has no text in a text column."""
    schema = file_schema(file, text)
    for name in sorted(needed):
        choose(name, (), schema, "column", file.path)
    for name in sorted(text):
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise InputError(f"column {name!r} of {file.path!r} is {kind}, not text; its columns are {columns}")
