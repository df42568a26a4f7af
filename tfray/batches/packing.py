"""Several pairs in one row, so that a GPU multiplies fewer paddings: which share a row. NumPy only.

    source  |a a a a a|b b b|c c c c c c|.|      segments  1 1 1 1 1 2 2 2 3 3 3 3 3 3 0
    target  |a a a a|b b b b|c c c c c|. .|                1 1 1 1 2 2 2 2 3 3 3 3 3 0 0

All rows of a pool have the same widths, so neither lengths nor shapes matter to the order: examples are shuffled, each
goes where it leaves least room, and rows that follow each other make a micro-batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tfray.batches.lengths import padded_length, round_down
from tfray.config import BatchesConfig

WANTED_WIDTH = 128
"""A row that is hardly wider than an example holds one and padding; one of twice the longest is wide enough."""
OPEN_ROWS = 32
"""Rows into which an example may go: more fill them hardly better, and planning takes longer."""
NO_ROOM = 1 << 40
STREAM = 4096
"""Examples that are packed one after the other; streams of them are packed side by side, for speed."""


class Widths(NamedTuple):
    """Tokens that a row holds."""

    source: int
    target: int


def row_widths(source_lengths: np.ndarray, target_lengths: np.ndarray, max_tokens: int) -> Widths:
    """Return the widths of a pool's rows: every example fits, and both sides are full at about the same time."""
    lengths = (source_lengths, target_lengths)
    longest = [padded_length(int(side.max())) for side in lengths]
    shares = [int(side.sum()) / max(int(side.sum()) for side in lengths) for side in lengths]
    wanted = max(WANTED_WIDTH, *(least / share for least, share in zip(longest, shares, strict=True)))
    width = max(*longest, min(wanted, 2 * max(longest), max_tokens))
    source, target = (
        max(least, round_down(math.ceil(width * share))) for least, share in zip(longest, shares, strict=True)
    )
    return Widths(source, target)


def pack_pool(
    source_lengths: np.ndarray, target_lengths: np.ndarray, config: BatchesConfig, random: np.random.Generator
) -> list[np.ndarray]:
    """Return a pool's micro-batches of packed rows: each at most max_tokens wide and long, or one row."""
    widths = row_widths(source_lengths, target_lengths, config.max_tokens)
    order = random.permutation(len(source_lengths))
    rows = fill_rows(source_lengths[order], target_lengths[order], widths)
    rows_each = max(1, config.max_tokens // max(widths))
    # Row by row, so that first_fit() finds room for all of a micro-batch in as many rows again: when it comes to a
    # row's examples, only examples of the rows before can have been placed in that row, and none are.
    by_row = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[by_row], np.arange(rows_each, rows.max() + 1, rows_each))
    return np.split(order[by_row], bounds)


def fill_rows(source_lengths: np.ndarray, target_lengths: np.ndarray, widths: Widths) -> np.ndarray:
    """Return the row of each example: of the open rows with room on both sides, the one that it leaves fullest.

    Where none has room the fullest is closed for a new one.
    """
    count = len(source_lengths)
    streams = max(1, count // STREAM)
    each = np.arange(streams)
    padded = np.zeros((2, -(-count // streams) * streams), dtype=np.int64)  # the last stream is shorter
    padded[:, :count] = source_lengths, target_lengths
    lengths = padded.reshape(2, streams, -1).transpose(2, 0, 1)  # (examples of a stream, sides, streams)
    room = np.zeros((2, streams, OPEN_ROWS), dtype=np.int64)
    open_rows = np.zeros((streams, OPEN_ROWS), dtype=np.int64)
    opened = np.zeros(streams, dtype=np.int64)
    rows = np.empty((len(lengths), streams), dtype=np.int64)
    for number, wanted in enumerate(lengths):
        left = room - wanted[:, :, None]
        left_over = np.where(left.min(0) < 0, NO_ROOM, left.sum(0))
        chosen = left_over.argmin(1)
        new = each[left_over[each, chosen] == NO_ROOM]
        if len(new):
            chosen[new] = room[:, new].sum(0).argmin(1)
            room[:, new, chosen[new]] = np.array(widths)[:, None]
            open_rows[new, chosen[new]] = opened[new]
            opened[new] += 1
        room[:, each, chosen] -= wanted
        rows[number] = open_rows[each, chosen]
    return (rows + np.cumsum(opened) - opened).T.ravel()[:count]


def first_fit(source_lengths: np.ndarray, target_lengths: np.ndarray, widths: Widths) -> np.ndarray:
    """Return the row of each example: the first that has room on both sides."""
    count = len(source_lengths)
    source_room, target_room = (np.full(count, width) for width in widths)
    rows, used = np.empty(count, dtype=np.int64), 0
    for example, (source, target) in enumerate(zip(source_lengths.tolist(), target_lengths.tolist(), strict=True)):
        # the row after the used ones is empty
        row = int(((source_room[: used + 1] >= source) & (target_room[: used + 1] >= target)).argmax())
        rows[example], used = row, max(used, row + 1)
        source_room[row] -= source
        target_room[row] -= target
    return rows


def sums_before(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return for each example the sum of the lengths of those before it in its row."""
    order = np.argsort(rows, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    is_first = np.diff(rows[order], prepend=-1) > 0
    found = np.empty_like(before)
    found[order] = before - np.maximum.accumulate(np.where(is_first, before, 0))
    return found
