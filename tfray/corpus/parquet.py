"""Parquet -> rows, a few thousand at a time, from the row groups and columns that are needed."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfray import storage
from tfray.corpus.rows import BLOCK_BYTES, BLOCK_ROWS, DamagedFile, Rows, check_text
from tfray.units.plan import Unit

NOT_HELD = (pa.ArrowInvalid, pa.ArrowNotImplementedError)  # what a cast raises: of a value, or of two types
BUFFER_BYTES = 4 << 20  # of each column; without such a buffer (or with pre_buffer) a whole row group is held


def read_parquet(unit: Unit, schema: pa.Schema) -> Iterator[Rows]:
    """Yield a unit's rows; a row group that is damaged is left out, and DamagedFile raised after the others."""
    damage = None
    try:
        with storage.open_patiently(unit.path) as source:
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
            if file.metadata.num_rows < unit.stop:
                raise DamagedFile(unit.path, "it has lost rows since the job was planned")
            for group, first_row in groups_of(file.metadata, unit):
                try:
                    yield from read_group(file, group, first_row, unit, schema)
                except storage.READ_ERRORS as error:
                    damage = damage or DamagedFile(unit.path, f"row group {group}: {error}")
    except storage.READ_ERRORS as error:
        raise DamagedFile(unit.path, str(error)) from error
    if damage:
        raise damage


def groups_of(footer: pq.FileMetaData, unit: Unit) -> Iterator[tuple[int, int]]:
    """Yield the number and first row of each row group that holds rows of a unit."""
    row = 0
    for group in range(footer.num_row_groups):
        rows = footer.row_group(group).num_rows
        if row < unit.stop and row + rows > unit.start:
            yield group, row
        row += rows


def read_group(file: pq.ParquetFile, group: int, first_row: int, unit: Unit, schema: pa.Schema) -> Iterator[Rows]:
    """Yield a unit's rows of one row group."""
    present = [name for name in schema.names if name in file.schema_arrow.names]
    size = block_rows(file.metadata.row_group(group), present)
    row = first_row
    for batch in file.iter_batches(size, row_groups=[group], columns=present, use_threads=False):
        first, last = max(row, unit.start), min(row + len(batch), unit.stop)
        if first < last:
            yield declared(batch.slice(first - row, last - first), schema, first)
        row += len(batch)
        if row >= unit.stop:
            return


def block_rows(group: pq.RowGroupMetaData, names: list[str]) -> int:
    """Return how many rows of a row group make a block of bounded size."""
    columns = [group.column(index) for index in range(group.num_columns)]
    begins = tuple(f"{name}." for name in names)  # a name may hold full stops, and the path of a nested column does
    size = sum(column.total_uncompressed_size for column in columns if f"{column.path_in_schema}.".startswith(begins))
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * group.num_rows // max(1, size)))


def declared(batch: pa.RecordBatch, schema: pa.Schema, first_row: int) -> Rows:
    """Return a batch's declared columns; text that is not UTF-8 (which Parquet's readers do not check) is null."""
    arrays, errors = [], {}
    for field in schema:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(len(batch), field.type))
            continue
        array = batch.column(field.name)
        if is_text(array.type):
            array, bad = check_text(as_binary(array))
            errors = {**bad, **errors}
        array, bad = cast(array, field)
        errors = {**bad, **errors}
        arrays.append(array)
    return Rows(pa.table(arrays, schema=schema), errors, first_row)


def cast(array: pa.Array, field: pa.Field) -> tuple[pa.Array, dict[int, str]]:
    """Return an array in a column's type, which other files may have made a wider one; what that does not hold, such as
    a whole number above 2**53 as a float, is null and has an error by its index."""
    try:
        return array.cast(field.type), {}
    except NOT_HELD:  # look at each: a cast without checks would make -1 of 2**64 - 1
        values = ((index, value) for index, value in enumerate(array) if value.is_valid)
        errors = {index: error for index, value in values if (error := misfit(value, field))}
    fits = pc.and_(array.is_valid(), pa.array([index not in errors for index in range(len(array))]))
    if not fits.true_count:  # nor may a column of nulls be cast where one type never fits the other
        return pa.nulls(len(array), field.type), errors
    return pc.if_else(fits, array, pa.scalar(None, array.type)).cast(field.type), errors


def misfit(value: pa.Scalar, field: pa.Field) -> str | None:
    """Return the error of a value that a column does not hold, or None."""
    try:
        value.cast(field.type)
    except NOT_HELD as error:
        return f"bad_type: {field.name} is not {field.type}: {error}"
    return None


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column holds text, in one of the ways in which Parquet's writers hold it."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def as_binary(array: pa.Array) -> pa.Array:
    """Return text as the bytes that it is made of."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type):
        return array.view(pa.binary())
    large = pa.types.is_large_string(array.type)
    return (array.view(pa.large_binary()) if large else array.cast(pa.binary_view())).cast(pa.binary())
