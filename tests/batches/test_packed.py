"""Rows in which several pairs stand one after the other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths, first_fit
from tfray.batches.plan import shape_of
from tfray.tokens.ragged import Ragged
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

PAIRS = st.lists(st.tuples(*[st.lists(st.integers(3, 99), max_size=9)] * 2), min_size=1, max_size=12)
WIDTHS = Widths(17, 15)


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([value for row in rows for value in row], dtype=np.uint16)
    return Ragged(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]))


def segments_of(ids: torch.Tensor, segments: torch.Tensor) -> list[tuple[int, int, list[int]]]:
    """Return the row, the segment and the ids of every segment."""
    return [
        (row, number, ids[row][segments[row] == number].tolist())
        for row in range(len(ids))
        for number in range(1, int(segments[row].max()) + 1)
    ]


@given(PAIRS)
def test_every_pair_is_there_once_with_its_sides_in_the_same_segment(pairs: list[tuple[list[int], list[int]]]):
    batch = collate_packed(ragged([[*ids, EOS_ID] for ids, _ in pairs]), ragged([ids for _, ids in pairs]), WIDTHS)
    assert batch.source_segments is not None and batch.target_segments is not None
    found = zip(
        segments_of(batch.source_ids, batch.source_segments),
        segments_of(batch.target_ids, batch.target_segments),
        segments_of(batch.label_ids, batch.target_segments),
        strict=True,
    )
    unpacked = []
    for source, target, label in found:
        assert source[:2] == target[:2] == label[:2]
        assert source[2][-1] == label[2][-1] == EOS_ID and target[2][0] == BOS_ID
        assert target[2][1:] == label[2][:-1]
        unpacked.append((tuple(source[2][:-1]), tuple(label[2][:-1])))
    assert Counter(unpacked) == Counter((tuple(source), tuple(target)) for source, target in pairs)


@given(PAIRS)
def test_rows_are_those_of_first_fit_and_padding_is_at_the_right(pairs: list[tuple[list[int], list[int]]]):
    source, target = ragged([[*ids, EOS_ID] for ids, _ in pairs]), ragged([ids for _, ids in pairs])
    batch = collate_packed(source, target, WIDTHS)
    rows = first_fit(np.diff(source.offsets), np.diff(target.offsets) + 1, WIDTHS)
    assert len(batch.source_ids) == len(batch.target_ids) == rows.max() + 1
    for ids, segments in (
        (batch.source_ids, batch.source_segments),
        (batch.target_ids, batch.target_segments),
        (batch.label_ids, batch.target_segments),
    ):
        assert segments is not None and ids.dtype == segments.dtype == torch.int64
        assert torch.equal(ids == PAD_ID, segments == 0)
        is_token = (segments > 0).int()
        assert (is_token.diff(dim=1) <= 0).all(), "no token comes after padding"
    lengths = np.diff(source.offsets), np.diff(target.offsets) + 1
    assert batch.padded_tokens == shape_of(*lengths, WIDTHS).tokens
    assert batch.target_tokens == sum(len(ids) + 1 for _, ids in pairs)


def test_an_example_in_full():
    batch = collate_packed(
        ragged([[5, 6, EOS_ID], [7, EOS_ID], [8, 9, EOS_ID]]), ragged([[3], [4, 4], []]), Widths(6, 6)
    )
    assert batch.source_ids.tolist() == [[5, 6, EOS_ID, 7, EOS_ID, 0, 0, 0], [8, 9, EOS_ID, 0, 0, 0, 0, 0]]
    assert batch.source_segments is not None and batch.target_segments is not None
    assert batch.source_segments.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch.target_ids.tolist() == [[BOS_ID, 3, BOS_ID, 4, 4, 0, 0, 0], [BOS_ID, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.label_ids.tolist() == [[3, EOS_ID, 4, 4, EOS_ID, 0, 0, 0], [EOS_ID, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.target_segments.tolist() == [[1, 1, 2, 2, 2, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
