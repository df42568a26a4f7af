"""Which columns of the input are source and target, and what the target is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pyarrow as pa

from tfray.corpus.jsonl import SAMPLE_LINES
from tfray.corpus.read import DamagedFile, file_schema, readable_schema
from tfray.errors import InputError
from tfray.units.files import InputFile

Task = Literal["translation", "classification"]
SOURCE_NAMES = ("source", "text")
TARGET_NAMES = ("target", "label")


class SettingNames(NamedTuple):
    """The settings by which files and columns are given, for messages."""

    files: str | None = None
    target_files: str | None = None
    """None where plain text cannot have a target side."""
    source: str = "source_column"
    target: str = "target_column"


UNNAMED = SettingNames()
NO_OBJECTS = (
    f"is read as JSON lines (by its ending), and none of its first {SAMPLE_LINES} lines holds a JSON object with a "
    "field, in UTF-8"
)


class Columns(NamedTuple):
    """The columns of a corpus."""

    source: str
    target: str
    task: Task

    @property
    def needed(self) -> set[str]:
        """The names of both."""
        return {self.source, self.target}

    @property
    def text(self) -> set[str]:
        """The names of those that must be text; a label may be anything."""
        return {self.source} if self.task == "classification" else {self.source, self.target}


def choose_columns(
    files: list[InputFile],
    source: str | None,
    target: str | None,
    task: str = "auto",
    settings: SettingNames = UNNAMED,
) -> Columns:
    """Return the columns of the first file that has what is wanted.

    Raises InputError naming the columns that there are where no file has it; `missing_columns` tells of each
    file whether it has them.
    """
    refusals = []
    for file in files:
        try:
            columns = columns_of(file, source, target, task, settings)
            check_columns(file, columns.needed, columns.text)
            return columns
        except InputError as error:
            refusals.append(error)
    raise most_telling(files, refusals)


def columns_of(file: InputFile, source: str | None, target: str | None, task: str, settings: SettingNames) -> Columns:
    """Return a file's columns of source and target; raises InputError where it lacks one, or both are the same."""
    schema = named_schema(file)
    source = choose(source, SOURCE_NAMES, schema, settings.source, file.path)
    if file.format == "text" and not file.target_path and target not in schema.names:
        side = f"{settings.target_files}, or " if settings.target_files else ""
        raise InputError(
            f"{file.path!r} is plain text (by its ending) and has no target; give {side}a file with columns"
        )
    target = choose(target, TARGET_NAMES, schema, settings.target, file.path)
    if source == target:
        columns = ", ".join(schema.names)
        raise InputError(
            f"{settings.source} and {settings.target} are both {source!r} in {file.path!r}; they must be two columns: "
            f"name another ({columns})"
        )
    if task == "auto":
        task = "classification" if target == "label" else "translation"
    return Columns(source, target, task)  # type: ignore[arg-type]


def choose_source(files: list[InputFile], source: str | None, setting: str = "source_column") -> str:
    """Return the source column of the first file that has one; raises InputError where none has."""
    refusals = []
    for file in files:
        try:
            name = choose(source, SOURCE_NAMES, named_schema(file), setting, file.path)
            check_columns(file, {name}, {name})
            return name
        except InputError as error:
            refusals.append(error)
    raise most_telling(files, refusals)


def named_schema(file: InputFile) -> pa.Schema:
    """Return the columns of one file; raises InputError where it cannot be read, or has no JSON object to name some."""
    schema = readable_schema(file)
    if lacks_objects(file, schema):
        raise InputError(f"{file.path!r} {NO_OBJECTS}; write one object a line, as UTF-8")
    return schema


def lacks_objects(file: InputFile, schema: pa.Schema) -> bool:
    """Say whether a file with the ending of JSON lines is something else, such as one array, or UTF-16."""
    return file.format == "jsonl" and not file.is_empty and not schema.names


def most_telling(files: list[InputFile], refusals: list[InputError]) -> InputError:
    """Return the refusal of the first file that can be read, else of the first one."""
    for file, refusal in zip(files, refusals, strict=True):
        if not file.damage and not file.is_empty:
            return refusal
    return refusals[0]


def choose(wanted: str | None, usual: tuple[str, ...], schema: pa.Schema, setting: str, path: str) -> str:
    """Return the wanted column, or the first usual one that is there."""
    candidates = usual if wanted is None else (wanted,)
    for name in candidates:
        if name in schema.names:
            return name
    columns = ", ".join(schema.names) or "(none)"
    if wanted is None:
        raise InputError(f"no column {' or '.join(usual)} in {path!r} (its columns: {columns}); name it by {setting}")
    raise InputError(f"{setting}={wanted!r} is not in {path!r}; its columns are {columns}; name one of them")


def check_columns(file: InputFile, needed: set[str], text: set[str]) -> None:
    """Raise InputError where a file cannot be read, lacks a column, or has no text in a text column."""
    if not file.is_empty:
        named_schema(file)
    reason = missing_columns(file, needed, text)
    if reason:
        raise InputError(f"{file.path!r} cannot be used: {reason}; choose other columns, or replace or remove the file")


def missing_columns(file: InputFile, needed: set[str], text: set[str]) -> str | None:
    """Return why a file cannot give the needed columns, those in `text` as text; None where it can.

    A file without rows lacks nothing.
    """
    if file.is_empty:
        return None
    try:
        schema = file_schema(file, text)
    except DamagedFile as error:
        return error.reason
    except InputError as error:
        return str(error)
    if lacks_objects(file, schema):
        return f"it {NO_OBJECTS}"
    columns = ", ".join(map(describe_field, schema)) or "(none)"
    for name in sorted(needed):
        if name not in schema.names:
            return f"there is no column {name!r}; its columns are {columns}"
        kind = schema.field(name).type
        if name in text and not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            return f"column {name!r} is {kind}, not text; its columns are {columns}"
    return None


def describe_field(field: pa.Field) -> str:
    """Return a column's name and type, for messages."""
    return f"{field.name} ({field.type})"
