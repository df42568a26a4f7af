"""Where lines begin: counted once, so that units of lines have exact row numbers.

A file is scanned in ranges side by side; what is kept is the number of its lines and where every
so-many-th of them begins.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tfray import storage

RANGE_BYTES = 64 << 20
THREADS = min(8, os.cpu_count() or 1)
COMMA = ord(",")
STRAY = np.ones(256, bool)  # by the byte before a quote: it stands in the middle of a field, ...
STRAY[[*b',\n"\xbf']] = False  # ... and not at its start, after another quote, or after a byte-order mark


class LineIndex(NamedTuple):
    """The lines of a file, and where some of them begin."""

    lines: int
    numbers: np.ndarray  # int64, ascending, from line 0
    offsets: np.ndarray  # int64: the byte at which each begins
    has_open_lines: bool = False
    """Some line has an odd number of double quotes, or a quote may open after a stray one (`5" wide,"a`): in CSV, a
    record that goes over lines."""
    bytes: int = 0
    """Of the file, uncompressed."""

    def place(self, number: int) -> tuple[int, int]:
        """Return number and byte of the last known beginning at or before a line."""
        at = int(np.searchsorted(self.numbers, number, side="right")) - 1
        return int(self.numbers[at]), int(self.offsets[at])


class Range(NamedTuple):
    """What a scan finds in a range of bytes."""

    line_ends: int
    numbers: np.ndarray  # of line ends in the range, from 1: the lines that begin after them
    offsets: np.ndarray
    stop: int
    is_closed: bool  # ends with a line end, or is empty
    quotes: int
    parities: frozenset[int]  # of the number of double quotes before each line end, from the range's start on
    strays: frozenset[int]  # the same before each quote in the middle of a field, ...
    openings: frozenset[int]  # ... and before each quote after a comma


def index_files(places: list[tuple[str, str | None]], stride: int) -> dict[str, LineIndex | None]:
    """Return the lines of files (given with their compression) by path, every stride-th place kept.

    A damaged file has none: whoever reads its unit will say so.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        scans = [
            (path, [threads.submit(scan, path, compression, *span, stride) for span in spans(path, compression)])
            for path, compression in places
        ]
        return {path: join_ranges(futures) for path, futures in scans}


def count_lines(places: list[tuple[str, str | None]]) -> int | None:
    """Return how many lines files (given with their compression) have in all; None where one is damaged."""
    counts = [index and index.lines for index in index_files(places, stride=RANGE_BYTES).values()]
    return None if None in counts else sum(filter(None, counts))


def spans(path: str, compression: str | None) -> list[tuple[int, int | None]]:
    """Return the ranges in which a file is scanned: one where it is compressed."""
    if compression:
        return [(0, None)]
    size = storage.file_size(path) or 0
    return [(start, min(start + RANGE_BYTES, size)) for start in range(0, size, RANGE_BYTES)]


def scan(path: str, compression: str | None, start: int, stop: int | None, stride: int) -> Range:
    """Return the line ends of a range, and where the first and every stride-th line after it begins."""
    count, position, is_closed, quotes = 0, start, True, 0
    parities: set[int] = set()
    strays: set[int] = set()
    openings: set[int] = set()
    last = next(storage.read_chunks(path, compression, start - 1, start), b"\n") if start else b"\n"
    numbers: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    for chunk in storage.read_chunks(path, compression, start, stop):
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == 10)
        marks = np.flatnonzero(data == ord('"'))
        parities.update(np.unique((quotes + np.searchsorted(marks, ends)) & 1).tolist())
        if len(marks):
            behind = data[marks - 1]
            behind[0] = data[marks[0] - 1] if marks[0] else last[-1]
            strays |= parities_of(STRAY[behind], quotes)
            openings |= parities_of(behind == COMMA, quotes)
        quotes, last = quotes + len(marks), chunk
        kept = ends[-count % stride :: stride]  # those whose number from 0 is a multiple of stride
        numbers.append(count + 1 + np.arange(-count % stride, len(ends), stride, dtype=np.int64))
        offsets.append(position + kept + 1)
        count, position, is_closed = count + len(ends), position + len(chunk), chunk.endswith(b"\n")
    places = (join_arrays(numbers), join_arrays(offsets))
    sets = (frozenset(found) for found in (parities, strays, openings))
    return Range(count, *places, position, is_closed, quotes, *sets)


def parities_of(flags: np.ndarray, quotes: int) -> set[int]:
    """Return the parities of the number of quotes before those that are flagged, which come after so many."""
    return {(quotes + place) & 1 for place in (0, 1) if flags[place::2].any()}


def join_arrays(parts: list[np.ndarray]) -> np.ndarray:
    """Return arrays one after the other, as int64."""
    return np.concatenate([np.zeros(0, np.int64), *parts])


def join_ranges(futures: list[Future[Range]]) -> LineIndex | None:
    """Return the lines of a file from its ranges, none where it is damaged."""
    try:
        ranges = [future.result() for future in futures]
    except storage.READ_ERRORS:
        return None
    numbers, offsets, ended = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], 0
    quotes, has_open_lines, has_strays, has_openings = 0, False, False, False
    for part in ranges:
        has_open_lines |= any((quotes + parity) & 1 for parity in part.parities)
        has_strays |= any((quotes + parity) & 1 == 0 for parity in part.strays)
        has_openings |= any((quotes + parity) & 1 for parity in part.openings)
        quotes += part.quotes
        numbers.append(part.numbers + ended)
        offsets.append(part.offsets)
        ended += part.line_ends
    lines = ended + (not ranges[-1].is_closed if ranges else 0)
    all_numbers, all_offsets = join_arrays(numbers), join_arrays(offsets)
    begins = all_numbers < lines  # no line begins after the last line end of a file
    size = ranges[-1].stop if ranges else 0
    has_open_lines |= has_strays and has_openings
    return LineIndex(int(lines), all_numbers[begins], all_offsets[begins], has_open_lines, size)
