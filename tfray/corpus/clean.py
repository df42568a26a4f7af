"""Rows -> clean pairs; every row that cannot be used has a reason."""

from __future__ import annotations

import math
import unicodedata
from typing import NamedTuple

import pyarrow as pa

from tfray.corpus.read import Rows

Pair = tuple[str, str]


class Rejected(NamedTuple):
    """A row that is not used, and why."""

    position: int
    reason: str
    excerpt: str


class Cleaned(NamedTuple):
    """What came of the rows of a unit."""

    positions: list[int]
    pairs: list[Pair]
    rejected: list[Rejected]


def clean_pairs(rows: Rows, source: str, target: str, max_characters: int) -> Cleaned:
    """Return the usable pairs of source and target text, normalized, and the rows left out."""
    sources = as_text(rows.table[source])
    targets = as_text(rows.table[target])
    cleaned = Cleaned([], [], [])
    for position, error, raw_source, raw_target in zip(rows.positions, rows.errors, sources, targets, strict=True):
        reason = (
            error or unusable("source", raw_source, max_characters) or unusable("target", raw_target, max_characters)
        )
        if reason:
            excerpt = f"{raw_source!r:.60} | {raw_target!r:.60}"
            cleaned.rejected.append(Rejected(position, reason, excerpt))
        else:
            cleaned.positions.append(position)
            cleaned.pairs.append((normalize(str(raw_source)), normalize(str(raw_target))))
    return cleaned


def as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column's values as text."""
    return [value_text(value) for value in column.to_pylist()]


def value_text(value: object) -> str | None:
    """Return a value (a label) as text: whole numbers by their digits, truth as in JSON, NaN as none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return None
    # 1.0 is the label 1: pandas turns a column of whole numbers into floats where one is missing.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def unusable(side: str, text: str | None, max_characters: int) -> str | None:
    """Return why a text cannot be used, as `kind: message`, or None."""
    if text is None:
        return f"missing_{side}: there is no {side}"
    if not text.strip():
        return f"empty_{side}: the {side} has no visible character"
    if len(text) > max_characters:
        return f"too_long: the {side} has {len(text)} characters, more than max_characters={max_characters}"
    return None


def normalize(text: str) -> str:
    """Return text in Unicode's composed form (NFC), so that equal text has equal tokens."""
    return unicodedata.normalize("NFC", text)


def kind_of(reason: str) -> str:
    """Return the kind of a reason or error, the part before its colon."""
    return reason.partition(":")[0]
