"""Rows of ids of different lengths, in one buffer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfray.tokens.special import EOS_ID


class Ragged(NamedTuple):
    """Rows of different lengths in one buffer: row i is values[offsets[i]:offsets[i + 1]]; offsets[0] is 0."""

    values: np.ndarray
    offsets: np.ndarray

    def take(self, rows: np.ndarray) -> Ragged:
        """Return some of the rows, in the order asked for."""
        lengths = np.diff(self.offsets)[rows]
        return Ragged(gather(self.values, self.offsets[rows], lengths), offsets_of(lengths))

    @staticmethod
    def concat(parts: list[Ragged]) -> Ragged:
        """Return the rows of several, one after the other."""
        lengths = [np.diff(part.offsets) for part in parts]
        return Ragged(np.concatenate([part.values for part in parts]), offsets_of(np.concatenate(lengths)))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where runs of these lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def sum_runs(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sums of runs of values, each of so many values."""
    return np.diff(offsets_of(values)[offsets_of(counts)])


def gather(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return values[start : start + length] of all starts, one after the other."""
    ends = np.cumsum(lengths)
    places = np.repeat(starts - ends + lengths, lengths)
    places += np.arange(len(places))
    return values[places]


def with_eos(rows: Ragged) -> Ragged:
    """Return rows with eos at the end of each."""
    stops = rows.offsets + np.arange(len(rows.offsets))
    values = np.full(stops[-1], EOS_ID, rows.values.dtype)
    is_own = np.ones(len(values), bool)
    is_own[stops[1:] - 1] = False
    values[is_own] = rows.values
    return Ragged(values, stops)


def without_eos(rows: Ragged) -> Ragged:
    """Return rows without the last token of each."""
    is_kept = np.ones(len(rows.values), dtype=bool)
    is_kept[rows.offsets[1:] - 1] = False
    return Ragged(rows.values[is_kept], rows.offsets - np.arange(len(rows.offsets)))
