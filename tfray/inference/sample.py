"""Some rows from all over the input, for what is to be known before the work begins."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pyarrow as pa

from tfray.corpus.read import DamagedFile, read_blocks
from tfray.units.plan import Unit

SAMPLED_UNITS = 10


class Sample(NamedTuple):
    """Some rows, and what is wrong with them."""

    table: pa.Table
    errors: dict[int, str]
    """Index in the table -> `kind: message`, for rows that could not be read as declared."""
    places: list[str]
    """File and row of each, for people."""
    damages: list[str]
    """Files of which no row could be read, and why, for people."""

    def first_error(self, errors: dict[int, str]) -> str | None:
        """Return the first of the rows' errors and its place, else the first damage."""
        if errors:
            return f"{self.places[min(errors)]}: {errors[min(errors)]}"
        return self.damages[0] if self.damages else None


def sample_rows(units: list[Unit], schema: pa.Schema, text_columns: set[str], count: int) -> Sample:
    """Return about so many rows from units all over the input."""
    step = max(1, len(units) // SAMPLED_UNITS)
    chosen = units[::step][:SAMPLED_UNITS]
    sample = Sample(schema.empty_table(), {}, [], [])
    for unit in chosen:
        try:
            for block in itertools.islice(read_blocks(unit, schema, text_columns, passes_all=True), 1):
                table = block.table.slice(0, -(-count // len(chosen)))
                before = len(sample.places)
                errors = {before + index: error for index, error in block.errors.items() if index < len(table)}
                sample.errors.update(errors)
                sample.places.extend(f"{unit.path} row {block.first_row + index}" for index in range(len(table)))
                sample = sample._replace(table=pa.concat_tables([sample.table, table]))
        except DamagedFile as error:
            sample.damages.append(f"{error.path}: damaged_file: {error.reason}")
    return sample
