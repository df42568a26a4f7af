"""Input files -> units: by footers, sizes and, for lines, where they begin.

A unit is (file, row range) of Parquet, or (file, byte range) of lines; it is read, worked on and
written as one, into one output file with a name that follows from the unit. Where a file cannot be
cut (CSV with records that go over lines), the unit is the whole file. A compressed file can, but who
reads a piece uncompresses all that stands before it: it is worth it where the work on rows is slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from tfray import storage
from tfray.errors import InputError
from tfray.units.files import THREADS, Format, InputFile, split_compression, uncompressed
from tfray.units.lines import LineIndex, index_files

BYTES_PER_ROW = 100  # of text that is not looked at, about
SAMPLE_BYTES = 64 << 10  # of text that is
MOST_PIECES = 16  # of one row group, unless the largest unit makes more


@dataclass(frozen=True)
class Unit:
    """What one task reads and writes as a whole."""

    index: int
    path: str
    format: Format
    compression: str | None
    start: int
    """First row of Parquet, first byte otherwise, uncompressed."""
    stop: int
    """The row or byte after the last; of a compressed file that is one unit, its size."""
    first_row: int
    """Number in the file of the unit's first row, from 0."""
    rows: int
    """Exact for Parquet and for lines that were counted, else an estimate."""
    bytes: int
    """Uncompressed bytes, about."""
    corpus: str = ""
    target_path: str | None = None
    target_start: int = 0
    """Parallel text: the byte of the target side from which to read, ..."""
    target_skip: int = 0
    """... and the lines to leave out there."""
    is_piece: bool = False
    """Of a compressed file."""
    run: str = ""
    """Fingerprint of what else its result follows from, where units of several runs may meet in one folder."""

    @cached_property
    def stem(self) -> str:
        """The name of what the unit becomes; follows from its number, file, range and run alone."""
        named = [self.index, self.path, self.start, self.stop, *filter(None, [self.run])]
        return f"part-{self.index:06d}-{storage.fingerprint(named)[:8]}"

    @property
    def end(self) -> int | None:
        """The byte at which to stop reading lines; none where a compressed file is read to its end."""
        return None if self.compression and not self.is_piece else self.stop

    @property
    def output_name(self) -> str:
        """The name of the one file that the unit becomes."""
        return f"{self.stem}.parquet"


def plan_units(
    files: list[InputFile],
    smallest: int,
    largest: int,
    wanted: int = 64,
    most_bytes: float | None = None,
    corpus: str = "",
    first_index: int = 0,
    most_pieces: int = 1,
) -> list[Unit]:
    """Return units of smallest to largest rows, about `wanted` of them; a function of the arguments alone.

    most_bytes: about so many bytes of input a unit at most, as far as `smallest` allows.
    most_pieces: of a compressed file, whatever its units then hold.

    Raises InputError for parallel text whose sides differ in length.
    """
    files = [file for file in files if not file.damage and not file.is_empty]
    with ThreadPoolExecutor(THREADS) as threads:
        rows = list(threads.map(estimate_rows, files))
    size = sum(uncompressed(file) for file in files)
    fitting = largest if most_bytes is None else math.ceil(sum(rows) * most_bytes / max(1, size))
    unit_rows = max(smallest, min(largest, fitting, math.ceil(sum(rows) / wanted)))
    stride = max(1, unit_rows // 16)  # finer costs memory, coarser makes units uneven
    indexes = index_files(places_to_count(files, rows, unit_rows, most_pieces), stride)
    check_lengths(files, indexes)
    ranges = [
        unit
        for file, file_rows in zip(files, rows, strict=True)
        for unit in cut(file, file_rows, unit_rows, largest, stride, indexes, most_pieces)
    ]
    return [replace(unit, index=first_index + index, corpus=corpus) for index, unit in enumerate(ranges)]


def estimate_rows(file: InputFile) -> int:
    """Return a file's rows; where there is no footer, from its size and its first lines."""
    if file.rows is not None:
        return file.rows
    if file.compression:
        return math.ceil(uncompressed(file) / BYTES_PER_ROW)
    try:
        head = b"".join(storage.read_chunks(file.path, stop=min(SAMPLE_BYTES, file.bytes)))
    except storage.READ_ERRORS:  # whoever reads the unit will say so
        return math.ceil(file.bytes / BYTES_PER_ROW)
    if len(head) >= file.bytes:
        return head.count(b"\n") + (not head.endswith(b"\n")) - file.has_header
    return math.ceil(file.bytes * head.count(b"\n") / max(1, len(head))) or 1


def places_to_count(
    files: list[InputFile], rows: list[int], unit_rows: int, most_pieces: int
) -> list[tuple[str, str | None]]:
    """Return the files whose lines must be counted, with their compressions: those to cut, and parallel text."""
    places = []
    for file, file_rows in zip(files, rows, strict=True):
        is_cut = file.has_lines and file_rows > unit_rows and (most_pieces > 1 or not file.compression)
        if file.target_path or is_cut:
            places += [(path, split_compression(path)[1]) for path in file.paths]
    return places


def check_lengths(files: list[InputFile], indexes: dict[str, LineIndex | None]) -> None:
    """Raise InputError where the sides of parallel text have not as many lines."""
    for file in files:
        source, target = indexes.get(file.path), indexes.get(file.target_path or "")
        if source and target and source.lines != target.lines:
            raise InputError(
                f"parallel text must have as many lines on both sides; {file.path!r} has {source.lines}, "
                f"{file.target_path!r} has {target.lines}; repair or replace them"
            )


def cut(
    file: InputFile,
    rows: int,
    unit_rows: int,
    largest: int,
    stride: int,
    indexes: dict[str, LineIndex | None],
    most_pieces: int,
) -> Iterator[Unit]:
    """Yield a file's units, none above unit_rows rows where it can be cut into as many."""
    if file.format == "parquet":
        for start, stop in pairwise(cut_groups(file.row_groups, unit_rows, largest)):
            yield make_unit(file, (start, stop), start, stop - start, rows)
        return
    index = indexes.get(file.path)
    goes_over_lines = file.format == "csv" and index is not None and index.has_open_lines
    is_compressed = any(split_compression(path)[1] for path in file.paths)
    is_whole = is_compressed and (most_pieces == 1 or file.target_path is not None)
    if index is None or not index.lines or goes_over_lines or is_whole:
        yield make_unit(file, (0, file.bytes), 0, index.lines if index else rows, index.lines if index else rows)
        return
    # A place in the index lies at most stride - 1 lines before the line that is looked for.
    pieces = max(1, math.ceil(index.lines / (unit_rows - stride + 1)))
    pieces = min(pieces, most_pieces) if is_compressed else pieces
    bounds = sorted({index.place(index.lines * piece // pieces) for piece in range(pieces)})
    for (first, start), (last, stop) in pairwise([*bounds, (index.lines, index.bytes)]):
        first_row = max(0, first - file.has_header)
        unit = make_unit(file, (start, stop), first_row, last - file.has_header - first_row, index.lines)
        unit = replace(unit, is_piece=is_compressed)
        target = indexes.get(file.target_path or "")
        if target:
            number, offset = target.place(first)
            unit = replace(unit, target_start=offset, target_skip=first - number)
        yield unit


def cut_groups(groups: tuple[int, ...], unit_rows: int, largest: int) -> list[int]:
    """Return where the units of a Parquet file begin, and its end: at row groups, or inside those that are larger."""
    bounds, row = [0], 0
    for rows in groups:
        if row > bounds[-1] and row + rows - bounds[-1] > unit_rows:
            bounds.append(row)
        # Who reads a piece decodes what stands before it in the group: many pieces read it many times.
        pieces = max(min(math.ceil(rows / unit_rows), MOST_PIECES), math.ceil(rows / largest))
        bounds += [row + rows * piece // pieces for piece in range(1, pieces)]
        row += rows
        if pieces > 1:
            bounds.append(row)
    return bounds if bounds[-1] == row else [*bounds, row]


def make_unit(file: InputFile, span: tuple[int, int], first_row: int, rows: int, of_rows: int) -> Unit:
    """Return the unit of a file's range, not numbered yet."""
    share = uncompressed(file) * rows // max(1, of_rows)
    return Unit(
        0, file.path, file.format, file.compression, *span, first_row, rows, share, target_path=file.target_path
    )


def amount(label: str, units: list[Unit]) -> tuple[str, int, str]:
    """Return what a progress display shows of units: its label, the rows in all, and how they are called."""
    cut = {unit.path for unit in units if unit.first_row}
    is_exact = all(unit.format == "parquet" or unit.target_path or unit.path in cut for unit in units)
    return label if is_exact else f"{label} (rows guessed by size)", sum(unit.rows for unit in units), "row"
