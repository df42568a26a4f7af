"""The survey's notes -> what every worker needs to judge a row: is it a duplicate, is its text held out."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tfray import storage
from tfray.config import ClusterConfig
from tfray.corpus.duplicates import MOST_PARTITIONS, Bitmap, find_duplicates
from tfray.report.progress import Progress
from tfray.tokens.survey import HELD_OUT_SCHEMA, UNIT_BITS, read_notes, text_hashes
from tfray.units.ledger import published
from tfray.units.plan import Unit
from tfray.units.stream import stream

ROWS_PER_PARTITION = 1 << 22  # some 200 MB of keys at a time for each kind


class Verdicts(NamedTuple):
    """Arrays that all workers of a machine share."""

    first: dict[int, int]
    """By a unit's index: the place of its first row in `duplicates`."""
    duplicates: Bitmap | None
    """One bit a row of the surveyed training units."""
    held_out_sources: np.ndarray
    """Sorted 64-bit hashes of the texts of validation and test data; none for what does not count."""
    held_out_targets: np.ndarray

    def is_duplicate(self, unit: Unit, rows: np.ndarray) -> np.ndarray:
        """Say for rows of a unit, by their numbers in the file, whether an equal one came before."""
        if self.duplicates is None or unit.index not in self.first:
            return np.zeros(len(rows), bool)
        return self.duplicates.test(self.first[unit.index] + rows - unit.first_row)

    def are_held_out(self, sources: pa.Array | pa.ChunkedArray, targets: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Say for each pair whether one of its texts belongs to validation or test data."""
        found = np.zeros(len(sources), bool)
        for texts, hashes in ((sources, self.held_out_sources), (targets, self.held_out_targets)):
            if len(hashes):
                found |= contains(hashes, text_hashes(texts))
        return found


def contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Say for each value whether it is in a sorted array."""
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(ascending) - 1)] == values


def count_partitions(rows: int) -> int:
    """Return into how many parts, a power of two, the keys of about so many rows are split."""
    wanted = max(1, rows // ROWS_PER_PARTITION)
    return min(MOST_PARTITIONS, 1 << (wanted - 1).bit_length())


def judge(
    folder: str, units: list[Unit], rows: list[int], partitions: int, held_out_targets: bool, cluster: ClusterConfig
) -> Verdicts:
    """Return the verdicts of a survey, given the training units that it saw and the rows of each."""
    starts = [0, *accumulate(rows)]
    first = {unit.index: start for unit, start in zip(units, starts[:-1], strict=True)}
    duplicates = mark_duplicates(folder, first, starts[-1], partitions, cluster) if partitions else None
    notes = read_notes(folder, "held_out", HELD_OUT_SCHEMA)
    sources, targets = (np.unique(notes[side].to_numpy()) for side in ("source", "target"))
    return Verdicts(first, duplicates, sources, targets if held_out_targets else targets[:0])


def mark_duplicates(folder: str, first: dict[int, int], rows: int, partitions: int, cluster: ClusterConfig) -> Bitmap:
    """Return the bitmap of duplicates; kept in the survey's folder, so that a later start finds it there."""
    path = storage.join(folder, "duplicates.npy")
    if storage.exists(path):
        return Bitmap(rows, storage.read_bytes(path))
    bitmap = Bitmap(rows)
    firsts = np.zeros(max(first, default=0) + 1, np.int64)
    firsts[list(first)] = list(first.values())
    with Progress("finding duplicates", partitions, "part") as progress:
        for ordinals in stream(list(range(partitions)), FindDuplicates, (folder,), cluster):
            bitmap.add(firsts[ordinals >> UNIT_BITS] + (ordinals & ((1 << UNIT_BITS) - 1)))
            progress.update(1)
    storage.publish_bytes(path, bitmap.to_bytes())
    return bitmap


class FindDuplicates:
    """Stage: a partition of the keys -> the ordinals of the rows that are duplicates."""

    def __init__(self, folder: str) -> None:
        self.paths = published(storage.join(folder, "keys"))

    def __call__(self, partition: int) -> np.ndarray:
        return find_duplicates(self.paths, partition)
