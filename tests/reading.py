"""A unit's rows as one table, for tests; the jobs read them block by block."""

from __future__ import annotations

import pyarrow as pa

from tfray.corpus.read import read_blocks
from tfray.corpus.rows import Rows
from tfray.units.plan import Unit


def read_unit(unit: Unit, schema: pa.Schema, text_columns: set[str]) -> Rows:
    """Return all rows of a unit; raises DamagedFile where some cannot be read."""
    tables, errors, count = [], {}, 0
    for rows in read_blocks(unit, schema, text_columns):
        tables.append(rows.table)
        errors.update({count + index: error for index, error in rows.errors.items()})
        count += len(rows.table)
    return Rows(pa.concat_tables(tables) if tables else schema.empty_table(), errors, unit.first_row)
