"""Cleaning: every row is a pair or has the first reason that fits, as plain Python finds it row by row."""

from __future__ import annotations

import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import CleanConfig, TextConfig
from tfray.corpus.clean import ERROR_KINDS, REJECTED_SCHEMA, Cleaned, clean_pairs, kind_of, unusable, value_text
from tfray.corpus.columns import Columns
from tfray.corpus.normalize import normalize
from tfray.corpus.read import Rows

PAIRS = Columns("source", "target", "translation")
LABELLED = Columns("source", "target", "classification")
TEXTS = (
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["", " \u3000", "ok"])
)
ERRORS = st.sampled_from([None, None, "bad_json: no"])


def clean(
    sources: list,
    targets: list,
    columns: Columns = PAIRS,
    errors: dict[int, str] | None = None,
    names: dict[str, str] | None = None,
    first_row: int = 0,
    text: TextConfig | None = None,
    **settings: object,
) -> Cleaned:
    """Return what comes of two columns of values."""
    targets_ = pa.array(targets, pa.string()) if columns is PAIRS else pa.array(targets)
    table = pa.table({"source": pa.array(sources, pa.string()), "target": targets_})
    rows = Rows(table, errors or {}, first_row)
    cleaned = clean_pairs(rows, columns, text or TextConfig(), CleanConfig(**settings), names or {})  # type: ignore[arg-type]
    assert cleaned.rejected.schema.equals(REJECTED_SCHEMA)
    assert cleaned.rows.dtype == np.int64
    assert cleaned.source.type == cleaned.target.type == pa.string()
    return cleaned


def messages(cleaned: Cleaned) -> list[str]:
    return [f"{row['reason']}: {row['message']}" for row in cleaned.rejected.to_pylist()]


def kinds(cleaned: Cleaned) -> list[str]:
    return cleaned.rejected["reason"].to_pylist()


@given(
    st.lists(st.tuples(TEXTS, TEXTS, ERRORS)),
    st.integers(1, 3),
    st.integers(3, 10),
    st.booleans(),
    st.booleans(),
)
def test_cleaning_columns_is_cleaning_row_by_row(
    rows: list, shortest: int, longest: int, drop: bool, space: bool
) -> None:
    config = TextConfig(whitespace=space)

    def reason(source: str | None, target: str | None, error: str | None) -> str | None:
        if error:
            return "bad_json"
        for side, text in (("source", source), ("target", target)):
            if text is None:
                return f"missing_{side}"
            if not text.strip():
                return f"empty_{side}"
            if len(text) < shortest:
                return "too_short"
            if len(text) > longest:
                return "too_long"
        return "equal" if drop and source == target else None

    sources, targets, errors = ([row[side] for row in rows] for side in range(3))
    plain = [normalize(pa.array(side, pa.string()), config).to_pylist() for side in (sources, targets)]
    expected = list(map(reason, *plain, errors))
    cleaned = clean(
        sources,
        targets,
        errors={index: error for index, error in enumerate(errors) if error},
        first_row=100,
        text=config,
        min_characters=shortest,
        max_characters=longest,
        drop_equal=drop,
    )
    kept = [index for index, kind in enumerate(expected) if kind is None]
    lost = [index for index, kind in enumerate(expected) if kind]
    assert cleaned.rows.tolist() == [100 + index for index in kept]
    assert cleaned.source.to_pylist() == [plain[0][index] for index in kept]
    assert cleaned.target.to_pylist() == [plain[1][index] for index in kept]
    assert cleaned.rejected["row"].to_pylist() == [100 + index for index in lost]
    assert kinds(cleaned) == [expected[index] for index in lost]
    assert cleaned.rejected["source"].to_pylist() == [sources[index] for index in lost]
    assert cleaned.rejected["target"].to_pylist() == [targets[index] for index in lost]


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("a", "b", "bad_json: cut", "bad_json: cut"),
        (None, "b", "not_text: source", "not_text: source"),
        (None, "b", None, "missing_source: there is no source"),
        ("a", None, None, "missing_target: there is no target"),
        ("", "b", None, "empty_source: the source has no visible character"),
        (" \t\u3000\xa0\x00", "b", None, "empty_source: the source has no visible character"),
        ("ab", "\n", None, "empty_target: the target has no visible character"),
        ("a", "bc", None, "too_short: the source has 1 characters, fewer than min_characters=2"),
        ("a" * 11, "b", None, "too_long: the source has 11 characters, more than max_characters=10"),
        ("ab", "ß" * 11, None, "too_long: the target has 11 characters, more than max_characters=10"),
        ("ab", " ab\t", None, "equal: source and target are the same"),
        ("abc1 яя", "ab", None, "wrong_script: 60% of the source's letters are Latin, less than min_script_share=0.7"),
        ("a" * 10, "b" * 10, None, None),
    ],
)
def test_a_rejected_row_has_the_reason_that_fits(
    source: str | None, target: str | None, error: str | None, message: str | None
) -> None:
    cleaned = clean(
        [source],
        [target],
        errors={0: error} if error else {},
        first_row=5,
        min_characters=2 if source != " \t\u3000\xa0\x00" else 1,
        max_characters=10,
        drop_equal=True,
        source_script="Latin",
        min_script_share=0.7,
    )
    if message == "missing_target: there is no target":
        message = "too_short: the source has 1 characters, fewer than min_characters=2"  # the source comes first
    assert messages(cleaned) == ([message] if message else [])
    assert cleaned.rejected["row"].to_pylist() + cleaned.rows.tolist() == [5]


def test_rejected_texts_are_kept_as_they_were_but_cut() -> None:
    (row,) = clean(["é\t" * 10**5], [None], max_characters=10).rejected.to_pylist()
    assert row["source"] == "é\t" * 500
    assert row["target"] is None


def test_white_space_that_is_kept_still_does_not_fill_a_text() -> None:
    cleaned = clean([" \u2028", " a "], ["b", "b"], text=TextConfig(whitespace=False))
    assert kinds(cleaned) == ["empty_source"]
    assert cleaned.source.to_pylist() == [" a "]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_prediction_refuses_the_texts_that_cleaning_refuses(text: str) -> None:
    normalized = normalize(pa.array([text]), TextConfig())[0].as_py()
    assert unusable("source", normalized, 9) == next(iter(messages(clean([text], ["b"], max_characters=9))), None)


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
    assert clean(["a"], [value], LABELLED).target.to_pylist() == ([text] if text else [])


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([["x"], ["y"]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([1, 2]).dictionary_encode(),
        pa.array([b"x", b"y"]),
        pa.nulls(2),
    ],
    ids=str,
)
def test_labels_of_any_type_have_a_text(labels: pa.Array) -> None:
    table = pa.table({"source": ["a", "b"], "target": labels})
    cleaned = clean_pairs(Rows(table, {}, 0), LABELLED, TextConfig(), CleanConfig(), {})
    assert cleaned.target.to_pylist() == [value_text(value) for value in labels.to_pylist() if value is not None]


def test_labels_that_a_missing_one_made_floats_are_still_digits() -> None:
    cleaned = clean(["a", "b", "c"], [1.0, math.nan, 0.0], LABELLED)
    assert cleaned.target.to_pylist() == ["1", "0"]
    assert kinds(cleaned) == ["missing_target"]


def test_labels_get_their_names_and_values_without_one_are_refused() -> None:
    cleaned = clean(["a", "b", "c", "d"], [1, 0, 2, None], LABELLED, names={"0": "bad", "1": "good"})
    assert cleaned.target.to_pylist() == ["good", "bad"]
    assert messages(cleaned) == [
        "unknown_label: '2' is not in label_names (0, 1)",
        "missing_target: there is no target",
    ]


@pytest.mark.parametrize("names", [{}, {"caf\u00e9 bar": "good"}, {" cafe\u0301  bar": "good"}])
def test_labels_that_look_alike_are_one(names: dict[str, str]) -> None:
    cleaned = clean(["a", "b", "c"], ["caf\u00e9 bar", " caf\u00e9 bar", "cafe\u0301\tbar "], LABELLED, names=names)
    assert cleaned.target.to_pylist() == ["good" if names else "caf\u00e9 bar"] * 3
    apart = clean(["a", "b"], ["x", " x"], LABELLED, text=TextConfig(whitespace=False))
    assert apart.target.to_pylist() == ["x", " x"]


def test_labels_keep_their_case_where_texts_do_not() -> None:
    text = TextConfig(lowercase=True)
    assert clean(["Good FILM"], ["Very  Positive"], LABELLED, text=text).target.to_pylist() == ["Very Positive"]
    names = {"Yes": "Positive", "yes": "odd"}
    cleaned = clean(["Good FILM"], ["Yes"], LABELLED, text=text, names=names)
    assert (cleaned.source.to_pylist(), cleaned.target.to_pylist()) == (["good film"], ["Positive"])


def test_a_label_is_not_measured_as_a_text_is() -> None:
    labels = ["x", " very  positive ", "e\u0301", "long" * 10, " ", "plain text"]
    cleaned = clean(
        ["plain text"] * 6,
        labels,
        LABELLED,
        min_characters=2,
        max_characters=15,
        drop_equal=True,
        target_script="han",
    )
    assert cleaned.target.to_pylist() == ["x", "very positive", "\u00e9", "long" * 10, "plain text"]
    assert kinds(cleaned) == ["empty_target"]


def test_no_rows_give_no_pairs() -> None:
    cleaned = clean([], [])
    assert len(cleaned.rows) == len(cleaned.source) == len(cleaned.rejected) == 0


def test_a_kind_is_what_stands_before_the_colon() -> None:
    assert kind_of("too_long: 7: more") == "too_long"
    assert all(re.fullmatch("[a-z_0-9]+", kind) for kind in ERROR_KINDS)
