"""Ragged id lists -> tensors in whose rows several pairs stand, one after the other."""

from __future__ import annotations

import numpy as np
import torch

from tfray.batches.batch import Batch
from tfray.batches.lengths import padded_length
from tfray.batches.packing import Widths, first_fit, sums_before
from tfray.tokens.ragged import Ragged, with_eos
from tfray.tokens.special import BOS_ID, PAD_ID


def collate_packed(source: Ragged, target: Ragged, widths: Widths) -> Batch:
    """Return a micro-batch of pairs that share rows; source rows end with eos, target rows have neither bos nor eos."""
    source_lengths, target_lengths = np.diff(source.offsets), np.diff(target.offsets)
    rows = first_fit(source_lengths, target_lengths + 1, widths)
    labels = with_eos(target)
    begins_with_bos = Ragged(np.insert(target.values, target.offsets[:-1], BOS_ID), labels.offsets)
    numbers = [np.repeat(numbers_in_row(rows), lengths) for lengths in (source_lengths, target_lengths + 1)]
    sides = [
        lay_out(values, offsets, rows)
        for values, offsets in (
            source,
            begins_with_bos,
            labels,
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
