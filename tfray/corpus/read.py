"""Units -> rows: Parquet, JSONL, CSV, TSV, plain and parallel text, compressed or not.

A row that cannot be read becomes a row of nulls with its error, so that rows and their numbers stay
aligned with the file whatever stands in it. Files are read in blocks: memory does not grow with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa

from tfray.corpus.delimited import read_csv, read_names, read_tsv
from tfray.corpus.jsonl import infer_json_fields, read_jsonl
from tfray.corpus.lines import read_text
from tfray.corpus.parquet import is_text, read_parquet
from tfray.corpus.rows import DamagedFile, Rows, assemble
from tfray.errors import InputError
from tfray.units.files import THREADS, InputFile
from tfray.units.plan import Unit

__all__ = ["DamagedFile", "Rows", "declare_schema", "file_schema", "read_blocks", "readable_schema", "with_schemas"]

TEXT_READERS = {"csv": read_csv, "tsv": read_tsv, "text": read_text}


def read_blocks(unit: Unit, schema: pa.Schema, text_columns: set[str], passes_all: bool = False) -> Iterator[Rows]:
    """Yield a unit's rows in the declared columns, a few thousand at a time.

    Values of text columns must be text; in other JSON columns a value that is not of the declared
    type becomes null with an error. Where all columns are to be passed on, a JSON field without one is an error,
    too. Raises DamagedFile after the last row that can be read.
    """
    if unit.format == "parquet":
        yield from read_parquet(unit, schema)
        return
    row = unit.first_row
    is_json = unit.format == "jsonl"
    blocks = read_jsonl(unit, schema.names, passes_all) if is_json else TEXT_READERS[unit.format](unit, schema.names)
    for block in blocks:
        yield assemble(block, schema, text_columns, row)
        row += block.rows


def declare_schema(files: list[InputFile], text_columns: set[str], needed: set[str] | None = None) -> pa.Schema:
    """Return the needed columns (default: all) of all files together.

    Raises InputError where two files disagree, or where one cannot be read.
    """
    schema = pa.schema([])
    for file in files:
        fields = readable_schema(file, text_columns)
        try:
            found = pa.schema([field for field in fields if needed is None or field.name in needed])
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{file.path!r} has other column types than the files before it: {error}; make the types alike, or "
                "leave the file out"
            ) from error
    text = {field.name: pa.string() for field in schema if pa.types.is_null(field.type)}
    return pa.schema([(field.name, text.get(field.name, field.type)) for field in schema])


def readable_schema(file: InputFile, text_columns: Collection[str] = ()) -> pa.Schema:
    """Return the columns of one file; raises InputError also where it cannot be read."""
    try:
        return file_schema(file, text_columns)
    except DamagedFile as error:
        raise InputError(f"{error}; replace or remove it") from error


def file_schema(file: InputFile, text_columns: Collection[str]) -> pa.Schema:
    """Return the columns of one file, of an empty text file none; those in `text_columns` as text where JSON has them.

    Raises InputError where two have the same name or a header names none, DamagedFile where the file cannot be read.
    """
    file = with_schema(file)
    if file.damage or file.schema is None:
        raise DamagedFile(file.path, file.damage or "")
    repeated = [name for name, count in Counter(file.schema.names).items() if count > 1]
    if repeated:
        raise InputError(f"{file.path!r} has several columns named {', '.join(repeated)}; rename all but one")
    as_text = text_columns if file.format == "jsonl" else ()
    return pa.schema(
        [
            (field.name, pa.string() if field.name in as_text or is_text(field.type) else field.type)
            for field in file.schema
        ]
    )


def with_schemas(files: list[InputFile]) -> list[InputFile]:
    """Return files with their columns, for which a text file is opened: many at a time, and each once."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(try_schema, files))


def try_schema(file: InputFile) -> InputFile:
    """Return a file with its columns where its header names some; else as it is: who needs them will say so."""
    try:
        return with_schema(file)
    except InputError:
        return file


def with_schema(file: InputFile) -> InputFile:
    """Return a file with its columns; where they cannot be read, with its damage."""
    if file.schema is not None or file.damage:
        return file
    try:
        return replace(file, schema=pa.schema(read_fields(file)))
    except DamagedFile as error:
        return replace(file, damage=error.reason)


def read_fields(file: InputFile) -> list[tuple[str, pa.DataType]]:
    """Return the names and types of a text file's columns."""
    if file.is_empty:
        return []
    if file.format == "jsonl":
        return infer_json_fields(file)
    if file.has_header:
        return [(name, pa.string()) for name in read_names(file)]
    return [(name, pa.string()) for name in (["source", "target"] if file.target_path else ["source"])]
