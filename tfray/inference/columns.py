"""The columns of a prediction file: those of the input, then ours, declared and not inferred."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from tfray.errors import InputError

OUTPUT_FIELDS = [
    pa.field("prediction", pa.string()),
    pa.field("score", pa.float64()),
    pa.field("error", pa.string()),
]


class Prediction(NamedTuple):
    """What a row gets: a prediction with its score, or an error."""

    text: str | None
    score: float | None
    error: str | None


def output_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the output; raises InputError where a name is taken."""
    taken = [field.name for field in OUTPUT_FIELDS if field.name in schema.names]
    if taken:
        raise InputError(
            f"the input has columns named {', '.join(taken)}, which predict writes itself; rename them in the input"
        )
    return pa.schema([*schema, *OUTPUT_FIELDS])


def with_predictions(table: pa.Table, predictions: list[Prediction]) -> pa.Table:
    """Return the input's columns with the predictions beside them."""
    texts, scores, errors = zip(*predictions, strict=True) if predictions else ((), (), ())
    columns = [
        pa.array(values, field.type) for values, field in zip((texts, scores, errors), OUTPUT_FIELDS, strict=True)
    ]
    return pa.table([*table.columns, *columns], schema=output_schema(table.schema))
