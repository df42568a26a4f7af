"""Some rows from all over the input, for what is to be known before the work begins."""

from __future__ import annotations

import itertools

import pyarrow as pa

from tfray.corpus.read import DamagedFile, read_blocks
from tfray.units.plan import Unit

SAMPLED_UNITS = 10


def sample_rows(units: list[Unit], schema: pa.Schema, text_columns: set[str], count: int) -> pa.Table:
    """Return about so many rows from units all over the input."""
    step = max(1, len(units) // SAMPLED_UNITS)
    chosen = units[::step][:SAMPLED_UNITS]
    tables = []
    for unit in chosen:
        try:
            for block in itertools.islice(read_blocks(unit, schema, text_columns), 1):
                tables.append(block.table.slice(0, -(-count // len(chosen))))
        except DamagedFile:
            continue
    return pa.concat_tables([schema.empty_table(), *tables])
