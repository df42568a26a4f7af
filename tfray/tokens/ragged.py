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
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[places], offsets)

    @staticmethod
    def concat(parts: list[Ragged]) -> Ragged:
        """Return the rows of several, one after the other."""
        lengths = [np.diff(part.offsets) for part in parts]
        return Ragged(np.concatenate([part.values for part in parts]), np.cumsum(np.concatenate([[0], *lengths])))


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
