"""What the steps of a unit hand over: rows with their ids, then with what the model makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tfray.units.plan import Unit


class Encoded(NamedTuple):
    """A unit ready for the model."""

    unit: Unit
    table: pa.Table
    """Its rows as they are in the input."""
    errors: dict[int, str]
    """By the index of a row: why it gets no answer."""
    notes: dict[int, str]
    """By the index of a row that gets an answer: what else is wrong with it."""
    pieces: dict[int, list[np.ndarray]]
    """By the index of a row: ids of its source, or of the sentences of its source, an end after each."""
    targets: dict[int, np.ndarray]
    """By the index of a row: ids of its target and an end, of task score alone."""
    truncated: list[int]
    """Indices of rows whose source was cut."""
    damage: str | None
    """Why the file could not be read to the end."""


class Answered(NamedTuple):
    """A unit that the model has seen."""

    unit: Unit
    table: pa.Table
    errors: dict[int, str]
    notes: dict[int, str]
    truncated: list[int]
    source_tokens: dict[int, int]
    answers: dict[int, Any]
    """By the index of a row: outputs of its pieces; or the labels' probabilities; or the log-probability of each
    target token; or a vector."""
    damage: str | None
    worker: str
    began: float
    seconds: float
    shortages: int
    """How often memory ran out, and fewer rows were worked on at a time."""
