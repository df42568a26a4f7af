"""Cleaning: every row is a pair or has a reason, and text is only composed, never changed otherwise."""

from __future__ import annotations

import math
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.corpus.clean import clean_pairs, kind_of, normalize, value_text
from tfray.corpus.read import Rows

SIDES = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["", " \u3000\xa0", "ok"])
)


def make_rows(sources: list, targets: list, errors: list | None = None) -> Rows:
    table = pa.table({"source": pa.array(sources, pa.string()), "target": pa.array(targets)})
    return Rows(table, errors or [None] * len(table), list(range(100, 100 + len(table))))


@given(st.lists(st.tuples(SIDES, SIDES, st.sampled_from([None, None, "bad_json: no"]))))
def test_every_row_is_either_a_pair_or_rejected_with_a_reason(rows: list[tuple]) -> None:
    sources, targets, errors = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
    table = pa.table({"source": pa.array(sources, pa.string()), "target": pa.array(targets, pa.string())})
    cleaned = clean_pairs(Rows(table, errors, list(range(len(rows)))), "source", "target", 10)
    assert sorted([*cleaned.positions, *(row.position for row in cleaned.rejected)]) == list(range(len(rows)))
    for position, pair in zip(cleaned.positions, cleaned.pairs, strict=True):
        assert rows[position][2] is None
        assert pair == tuple(unicodedata.normalize("NFC", text) for text in rows[position][:2])
        assert all(text.strip() for text in pair)
    assert all(kind_of(row.reason) != row.reason for row in cleaned.rejected)


@pytest.mark.parametrize(
    ("source", "target", "error", "kind"),
    [
        ("a", "b", "bad_json: cut", "bad_json"),
        (None, "b", "not_text: source", "not_text"),
        (None, "b", None, "missing_source"),
        ("a", None, None, "missing_target"),
        ("", "b", None, "empty_source"),
        (" \t\u3000\xa0", "b", None, "empty_source"),
        ("a", "\n", None, "empty_target"),
        ("a" * 11, "b", None, "too_long"),
        ("a", "b" * 11, None, "too_long"),
        ("a" * 10, "b" * 10, None, None),
    ],
)
def test_a_rejected_row_has_the_reason_that_fits(
    source: str | None, target: str | None, error: str | None, kind: str | None
) -> None:
    table = pa.table({"source": pa.array([source], pa.string()), "target": pa.array([target], pa.string())})
    cleaned = clean_pairs(Rows(table, [error], [5]), "source", "target", 10)
    assert [kind_of(row.reason) for row in cleaned.rejected] == ([kind] if kind else [])
    assert [row.position for row in cleaned.rejected] + cleaned.positions == [5]


def test_an_excerpt_is_short_however_long_the_row() -> None:
    text = "x" * 10**6
    (row,) = clean_pairs(make_rows([text], [text]), "source", "target", 10).rejected
    assert len(row.excerpt) < 200


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_equal_text_is_equal_after_normalizing_and_stays_so(text: str) -> None:
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize("text", ["ﬁ", "①", "Ａ", "ß", "İ", "a\u200bb", "x\u2028y", " a "])
def test_compatibility_letters_case_and_spaces_are_left_alone(text: str) -> None:
    assert normalize(text) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1", "1"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (True, "true"),
        (None, None),
        (math.nan, None),
        (math.inf, "inf"),
        (2**63 - 1, str(2**63 - 1)),
    ],
)
def test_a_label_has_one_spelling_whatever_type_its_column_has(value: object, text: str | None) -> None:
    assert value_text(value) == text


def test_labels_that_a_missing_one_made_floats_are_still_digits() -> None:
    cleaned = clean_pairs(make_rows(["a", "b", "c"], [1.0, math.nan, 0.0]), "source", "target", 10)
    assert cleaned.pairs == [("a", "1"), ("c", "0")]
    assert [kind_of(row.reason) for row in cleaned.rejected] == ["missing_target"]
