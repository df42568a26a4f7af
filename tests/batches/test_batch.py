"""Ragged rows and padded micro-batches."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.batch import collate, pad
from tfray.batches.plan import padded_length
from tfray.tokens.ragged import Ragged
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

ROWS = st.lists(st.lists(st.integers(3, 99), max_size=9), min_size=1, max_size=8)


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([value for row in rows for value in row], dtype=np.int32)
    return Ragged(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]))


def rows_of(rows: Ragged) -> list[list[int]]:
    return [rows.values[start:stop].tolist() for start, stop in zip(rows.offsets, rows.offsets[1:], strict=False)]


@given(ROWS, st.data())
def test_take_returns_rows_in_the_order_asked_for_also_repeatedly(rows: list[list[int]], data: st.DataObject):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    assert rows_of(ragged(rows).take(np.array(chosen))) == [rows[row] for row in chosen]


@given(ROWS, st.integers(0, 4))
def test_pad_fills_up_at_the_right(rows: list[list[int]], extra: int):
    width = max(map(len, rows)) + extra
    assert pad(ragged(rows), width).tolist() == [row + [PAD_ID] * (width - len(row)) for row in rows]


@given(st.lists(st.tuples(*[st.lists(st.integers(3, 99), max_size=9)] * 2), min_size=1, max_size=8))
def test_targets_begin_with_bos_and_labels_are_the_targets_one_ahead_and_end_with_eos(
    pairs: list[tuple[list[int], list[int]]],
):
    source, target = [[*ids, EOS_ID] for ids, _ in pairs], [ids for _, ids in pairs]
    batch = collate(ragged(source), ragged(target))

    def unpadded(ids: torch.Tensor) -> list[list[int]]:
        return [[token for token in row if token != PAD_ID] for row in ids.tolist()]

    assert unpadded(batch.source_ids) == source
    assert unpadded(batch.target_ids) == [[BOS_ID, *ids] for ids in target]
    assert unpadded(batch.label_ids) == [[*ids, EOS_ID] for ids in target]
    assert batch.target_ids.shape == batch.label_ids.shape == (len(pairs), padded_length(1 + max(map(len, target))))
    assert batch.source_ids.shape == (len(pairs), padded_length(max(map(len, source))))
    assert all(ids.dtype == torch.int64 for ids in batch[:3])
    assert batch[3:] == (None, None)


def test_padding_is_at_the_right_and_does_not_count_as_tokens():
    batch = collate(ragged([[5, EOS_ID], [6, 7, 8, EOS_ID]]), ragged([[9, 10], [11]]))
    assert batch.source_ids.tolist() == [[5, EOS_ID, PAD_ID, PAD_ID], [6, 7, 8, EOS_ID]]
    assert batch.target_ids.tolist() == [[BOS_ID, 9, 10, PAD_ID], [BOS_ID, 11, PAD_ID, PAD_ID]]
    assert batch.label_ids.tolist() == [[9, 10, EOS_ID, PAD_ID], [11, EOS_ID, PAD_ID, PAD_ID]]
    assert (batch.source_tokens, batch.target_tokens, batch.padded_tokens) == (6, 5, 16)


def test_moving_a_batch_keeps_its_parts():
    batch = collate(ragged([[5, EOS_ID]]), ragged([[6]]))
    assert all(torch.equal(*pair) for pair in zip(batch[:3], batch.to(torch.device("cpu"))[:3], strict=True))
    packed = batch._replace(source_segments=batch.source_ids, target_segments=batch.target_ids)
    assert all(torch.equal(*pair) for pair in zip(packed, packed.to(torch.device("cpu")), strict=True))
