"""Ragged id lists -> tensors in whose rows several pairs stand, one after the other."""

from __future__ import annotations

import numpy as np
import torch

from tfray.batches.batch import Batch, Ragged
from tfray.batches.lengths import padded_length
from tfray.batches.packing import Widths, first_fit, sums_before
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


def collate_packed(source: Ragged, target: Ragged, widths: Widths) -> Batch:
    """Return a micro-batch of pairs that share rows; source rows end with eos, target rows have neither bos nor eos."""
    source_lengths, target_lengths = np.diff(source.offsets), np.diff(target.offsets)
    rows = first_fit(source_lengths, target_lengths + 1, widths)
    begins_with_bos, ends_with_eos = (
        Ragged(np.insert(target.values, places, token), target.offsets + np.arange(len(target.offsets)))
        for places, token in ((target.offsets[:-1], BOS_ID), (target.offsets[1:], EOS_ID))
    )
    numbers = [np.repeat(numbers_in_row(rows), lengths) for lengths in (source_lengths, target_lengths + 1)]
    sides = [
        lay_out(values, offsets, rows)
        for values, offsets in (
            source,
            begins_with_bos,
            ends_with_eos,
            (numbers[0], source.offsets),
            (numbers[1], begins_with_bos.offsets),
        )
    ]
    return Batch(*map(torch.from_numpy, sides))


def numbers_in_row(rows: np.ndarray) -> np.ndarray:
    """Return which example of its row each is, from 1."""
    return sums_before(np.ones(len(rows), dtype=np.int64), rows) + 1


def lay_out(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return examples' ids one after the other in their rows, (rows, width) of int64, padded at the right."""
    lengths = np.diff(offsets)
    columns = sums_before(lengths, rows)
    width = padded_length(int((columns + lengths).max()))
    laid = np.full((int(rows.max()) + 1, width), PAD_ID, dtype=np.int64)
    places = np.repeat(rows * width + columns - offsets[:-1], lengths) + np.arange(len(values))
    laid.flat[places] = values
    return laid
