"""The plan of a run as a file: a later start takes the units from there and opens no input to find them."""

from __future__ import annotations

from dataclasses import asdict, fields

import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.units.plan import Unit

TYPES = {"int": pa.int64(), "str": pa.string(), "Format": pa.string(), "str | None": pa.string(), "bool": pa.bool_()}
UNIT_SCHEMA = pa.schema([(field.name, TYPES[str(field.type)]) for field in fields(Unit)])
ROWS_KEY = b"tfray.rows"


def write_plan(folder: str, inputs: object, units: list[Unit], rows: pa.Schema | None = None) -> str:
    """Write the units of a run, and the columns of their rows; return the name of the file."""
    name = f"_plan-{storage.fingerprint(inputs)}.parquet"
    table = pa.Table.from_pylist([asdict(unit) for unit in units], schema=UNIT_SCHEMA)
    if rows is not None:
        table = table.replace_schema_metadata({ROWS_KEY: rows.serialize().to_pybytes().hex().encode()})
    storage.publish_table(storage.join(folder, name), table)
    return name


def sweep_plans(folder: str, kept: str) -> None:
    """Delete the plans of a folder but one: an output that was added to, or made anew, has had others before."""
    for path in storage.list_files(folder):
        if storage.base_name(path).startswith("_plan-") and storage.base_name(path) != kept:
            storage.remove(path)


def read_plan(folder: str, name: str) -> tuple[list[Unit], pa.Schema | None]:
    """Return the units of a run, and the columns of their rows."""
    with storage.open_input(storage.join(folder, name)) as file:
        table = pq.read_table(file)
    rows = (table.schema.metadata or {}).get(ROWS_KEY)
    schema = None if rows is None else pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(rows.decode())))
    return [Unit(**row) for row in table.to_pylist()], schema
