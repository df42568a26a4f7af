"""Rows -> clean pairs; every row that cannot be used has a reason.

Whole columns at a time: each check gives a mask of rows, the first check that a row fails is its
reason, and only rows that are left out are looked at one by one, for their messages.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is loaded)
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray.config import CleanConfig, TextConfig
from tfray.corpus.columns import Columns
from tfray.corpus.normalize import SPACE, WHITE_SPACE, normalize
from tfray.corpus.read import Rows
from tfray.corpus.scripts import script_shares

REJECTED_SCHEMA = pa.schema(
    {"row": pa.int64(), "reason": pa.string(), "message": pa.string(), "source": pa.string(), "target": pa.string()}
)
MOST_CHARACTERS_KEPT = 1000  # of each side of a rejected row
MOST_LABELS_KEPT = 4096  # normalized; more than there are in most data
PLAIN = TextConfig()

# Kinds that say that the data is damaged or not what the settings say: too many of them end a job. The
# other kinds are choices (too_long, equal, unknown_label ...) or harmless: a blank line holds nothing that could be
# lost, and with an empty text many corpora say that a sentence has no counterpart. A field that is not there
# at all is mostly a mistake.
ERROR_KINDS = frozenset(
    {
        "bad_utf8",
        "bad_json",
        "bad_csv",
        "bad_tsv",
        "bad_type",
        "not_text",
        "missing_source",
        "missing_target",
        "damaged_file",
        "other_schema",
    }
)


class Cleaned(NamedTuple):
    """What came of some rows."""

    rows: np.ndarray
    """Number in the file of each usable row (int64)."""
    source: pa.Array
    """Its text, normalized."""
    target: pa.Array
    """Its text, or the name of its label, normalized."""
    rejected: pa.Table
    """The other rows, as in REJECTED_SCHEMA."""


class Check(NamedTuple):
    """One reason to leave rows out."""

    fails: np.ndarray
    """True for each row that fails."""
    message: Callable[[int], str]
    """`kind: message` for a row that fails, by its index."""


def clean_pairs(
    rows: Rows, columns: Columns, text: TextConfig, clean: CleanConfig, label_names: dict[str, str]
) -> Cleaned:
    """Return the usable pairs of source and target, normalized, and the rows left out with their reasons."""
    raw_source, raw_target = as_text(rows.table[columns.source]), as_text(rows.table[columns.target])
    source = normalize(raw_source, text)
    labelled = columns.task == "classification"
    target = normalize(raw_target, text.of_labels if labelled else text)
    checks = [read_errors(rows), *check_text("source", source, clean.source_script, clean)]
    if labelled:
        names = {label_text(value, text): name for value, name in label_names.items()}
        checks += check_label(target, names)
        target = name_labels(target, names)
    else:
        checks += check_text("target", target, clean.target_script, clean)
        if clean.drop_equal:
            checks.append(Check(true_rows(pc.equal(source, target)), lambda _: "equal: source and target are the same"))
    failing = np.logical_or.reduce([check.fails for check in checks])
    rejected = reject(rows.first_row, np.flatnonzero(failing), checks, raw_source, raw_target)
    if not failing.any():
        return Cleaned(rows.first_row + np.arange(len(source)), source, target, rejected)
    usable = pa.array(~failing)
    numbers = rows.first_row + np.flatnonzero(~failing)
    return Cleaned(numbers, source.filter(usable), target.filter(usable), rejected)


def read_errors(rows: Rows) -> Check:
    """Return which rows could not be read."""
    fails = np.zeros(len(rows.table), bool)
    fails[list(rows.errors)] = True
    return Check(fails, lambda row: rows.errors[row])


def check_text(side: str, texts: pa.Array, script: str | None, clean: CleanConfig) -> Iterator[Check]:
    """Yield the checks of one side's texts."""
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    shortest, longest = clean.min_characters, clean.max_characters
    yield from check_filled(side, texts)
    yield Check(
        lengths < shortest,
        lambda row: f"too_short: the {side} has {lengths[row]} characters, fewer than min_characters={shortest}",
    )
    yield Check(lengths > longest, lambda row: too_long(side, lengths[row], longest))
    if script is not None:
        shares = script_shares(texts, script)
        yield Check(
            shares < clean.min_script_share,
            lambda row: (
                f"wrong_script: {shares[row]:.0%} of the {side}'s letters are {script}, less than "
                f"min_script_share={clean.min_script_share}"
            ),
        )


def check_filled(side: str, texts: pa.Array) -> Iterator[Check]:
    """Yield the checks that there is something in a text or label."""
    yield Check(true_rows(pc.is_null(texts)), lambda _: missing(side))
    yield Check(true_rows(pc.match_substring_regex(texts, f"^{SPACE}*$")), lambda _: empty(side))


def check_label(labels: pa.Array, names: dict[str, str]) -> Iterator[Check]:
    """Yield the checks of labels."""
    yield from check_filled("target", labels)
    if names:
        known = pc.is_in(labels, value_set=pa.array(list(names), pa.string()))
        yield Check(
            ~true_rows(known),
            lambda row: f"unknown_label: {labels[row].as_py()!r:.40} is not in label_names ({', '.join(names)})",
        )


@lru_cache(MOST_LABELS_KEPT)
def label_text(label: str, text: TextConfig = PLAIN) -> str:
    """Return a label normalized: of two that look alike, only one is there."""
    return normalize(pa.array([label]), text.of_labels)[0].as_py()


def name_labels(labels: pa.Array, names: dict[str, str]) -> pa.Array:
    """Return the labels' names; null for those that have none."""
    if not names:
        return labels
    return pa.array(list(names.values()), pa.string()).take(pc.index_in(labels, pa.array(list(names), pa.string())))


def reject(first_row: int, indices: np.ndarray, checks: list[Check], source: pa.Array, target: pa.Array) -> pa.Table:
    """Return the rows left out, each with the first reason that there is."""
    first = np.argmax([check.fails[indices] for check in checks], axis=0)
    messages = [checks[number].message(row) for number, row in zip(first.tolist(), indices.tolist(), strict=True)]
    columns = [
        pa.array(first_row + indices),
        pa.array([kind_of(message) for message in messages], pa.string()),
        pa.array([message.partition(": ")[2] for message in messages], pa.string()),
        *(pc.utf8_slice_codeunits(side.take(pa.array(indices)), 0, MOST_CHARACTERS_KEPT) for side in (source, target)),
    ]
    return pa.table(columns, schema=REJECTED_SCHEMA)


def true_rows(mask: pa.BooleanArray) -> np.ndarray:
    """Return where an Arrow mask is true; null is not."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Return a column's values as text."""
    values = column.combine_chunks()
    if pa.types.is_string(values.type):
        return values
    try:  # each different value once: labels are few
        found = values.dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists and the like
        return pa.array([value_text(value) for value in values.to_pylist()], pa.string())
    return pa.array([value_text(value) for value in found.dictionary.to_pylist()], pa.string()).take(found.indices)


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
    """Return why a (normalized) text cannot be used, as `kind: message`, or None."""
    if text is None:
        return missing(side)
    if is_blank(text):
        return empty(side)
    return too_long(side, len(text), max_characters) if len(text) > max_characters else None


def is_blank(text: str) -> bool:
    """Say whether a text has no visible character."""
    return not text.strip(WHITE_SPACE)


def missing(side: str) -> str:
    return f"missing_{side}: there is no {side}"


def empty(side: str) -> str:
    return f"empty_{side}: the {side} has no visible character"


def too_long(side: str, length: int, max_characters: int) -> str:
    return f"too_long: the {side} has {length} characters, more than max_characters={max_characters}"


def kind_of(reason: str) -> str:
    """Return the kind of a reason or error, the part before its colon."""
    return reason.partition(":")[0]
