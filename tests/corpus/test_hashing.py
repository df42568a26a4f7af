"""Hashes: equal for equal text alone, the same for ever, and splits that follow from them alone."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import SPLITS
from tfray.corpus.hashing import TEST, TRAIN, VALID, hash_pairs, hash_rows, hash_texts, priority, split_of

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4))


def as_array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.string())


def numbered(count: int) -> pa.Array:
    return as_array([f"text {number}" for number in range(count)])


@given(TEXTS)
def test_hashes_are_equal_where_texts_are(texts: list[str]) -> None:
    hashes = hash_texts(as_array(texts))
    assert hashes.shape == (len(texts), 2) and hashes.dtype == np.uint64
    assert len({tuple(row) for row in hashes.tolist()}) == len(set(texts))
    assert [tuple(row) for row in hashes.tolist()] == [
        tuple(hash_texts(as_array([text]))[0].tolist()) for text in texts
    ]


def test_hashes_stay_what_they_are() -> None:
    expected = [[0x99AA06D3014798D8, 0x6001C324468D497F], [0x06B05AB6733A6185, 0x78AF5F94892F3950]]
    assert hash_texts(as_array(["", "abc"])).tolist() == expected  # as published for XXH3


@given(TEXTS, TEXTS)
def test_pairs_are_equal_where_both_sides_are(sources: list[str], targets: list[str]) -> None:
    pairs = list(zip(sources, targets, strict=False))
    hashes = hash_pairs(as_array(sources[: len(pairs)]), as_array(targets[: len(pairs)]))
    assert len({tuple(row) for row in hashes.tolist()}) == len(set(pairs))


def test_the_border_between_the_sides_of_a_pair_counts() -> None:
    hashes = hash_pairs(as_array(["ab", "a", "", "abc"]), as_array(["c", "bc", "abc", ""]))
    assert len({tuple(row) for row in hashes.tolist()}) == 4


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.uint8])
def test_rows_of_numbers_have_the_hashes_of_their_bytes(dtype: type) -> None:
    rows = np.arange(12, dtype=dtype).reshape(3, 4)
    assert len({tuple(row) for row in hash_rows(rows).tolist()}) == 3
    assert np.array_equal(hash_rows(rows[::-1]), hash_rows(rows)[::-1])


def test_another_salt_gives_other_hashes_and_another_split() -> None:
    texts = numbered(2000)
    one, two = hash_texts(texts, b"1"), hash_texts(texts, b"2")
    assert not np.any(np.all(one == two, axis=1))
    both = np.mean((split_of(one, 0.5, 0) == VALID) & (split_of(two, 0.5, 0) == VALID))
    assert 0.2 < both < 0.3


def test_splits_have_about_their_shares() -> None:
    splits = split_of(hash_texts(numbered(20_000)), 0.1, 0.3)
    assert splits.dtype == np.uint8
    assert np.bincount(splits) / len(splits) == pytest.approx([0.6, 0.1, 0.3], abs=0.015)
    assert [SPLITS[number] for number in (TRAIN, VALID, TEST)] == list(SPLITS)


@pytest.mark.parametrize(("valid", "test"), [(0, 0), (0, 0.5), (0.5, 0)])
def test_a_share_of_zero_gives_no_row_away(valid: float, test: float) -> None:
    splits = set(split_of(hash_texts(numbered(100)), valid, test).tolist())
    assert splits == {TRAIN} | ({VALID} if valid else set()) | ({TEST} if test else set())


@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=3))
def test_a_text_has_its_split_in_any_order_and_in_any_cut(order: list[int], cuts: list[int]) -> None:
    texts = numbered(60)
    expected = split_of(hash_texts(texts, b"7"), 0.2, 0.2)[order]
    shuffled = texts.take(pa.array(order))
    edges = [0, *sorted(cuts), 60]
    parts = [shuffled[start:stop] for start, stop in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate([split_of(hash_texts(part, b"7"), 0.2, 0.2) for part in parts]), expected)


def test_a_larger_share_only_adds_rows() -> None:
    hashes = hash_texts(numbered(5000))
    small, large = (split_of(hashes, share, 0) == VALID for share in (0.1, 0.2))
    assert not np.any(small & ~large)


def test_a_sample_of_a_split_is_fair() -> None:
    hashes = hash_texts(numbered(20_000))
    chosen = np.argsort(priority(hashes))[:2000]
    assert np.mean(split_of(hashes[chosen], 0.25, 0) == VALID) == pytest.approx(0.25, abs=0.04)
