"""Input files -> units, from footers and sizes alone.

A unit is (file, row range) of Parquet, or (file, byte range) of uncompressed lines; it is read,
worked on and written as one, into one output file with a name that follows from the unit. Where a
file cannot be cut without reading it (compressed, CSV, parallel text), the unit is the whole file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.errors import InputError

Format = Literal["parquet", "jsonl", "csv", "tsv", "text"]
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
BYTES_PER_ROW = 100  # to weigh lines against the rows of Parquet


@dataclass(frozen=True)
class InputFile:
    """One input file as its name, footer and size show it."""

    path: str
    format: Format
    compression: str | None
    size: int
    """Rows of Parquet, bytes otherwise."""
    schema: pa.Schema | None = None
    """Of Parquet only."""
    target_path: str | None = None
    """The target side of parallel text."""

    @property
    def rows(self) -> int:
        """Rows; estimated from the bytes where there is no footer."""
        return self.size if self.format == "parquet" else math.ceil(self.size / BYTES_PER_ROW)

    @property
    def paths(self) -> list[str]:
        """The file, and its target side if it is parallel text."""
        return [self.path, self.target_path] if self.target_path else [self.path]

    @property
    def can_be_cut(self) -> bool:
        lines = self.format in ("jsonl", "text") and not self.compression and not self.target_path
        return lines or self.format == "parquet"


@dataclass(frozen=True)
class Unit:
    """What one task reads and writes as a whole."""

    index: int
    path: str
    format: Format
    compression: str | None
    start: int
    stop: int
    rows: int
    """Rows; an estimate for lines."""
    target_path: str | None = None

    @property
    def output_name(self) -> str:
        """The name of the one file that the unit becomes."""
        return f"part-{self.index:06d}-{storage.fingerprint(asdict(self))[:8]}.parquet"


def find_files(paths: list[str], target_paths: list[str] | None = None) -> list[InputFile]:
    """Return the input files behind paths, globs and folders, in order.

    Raises InputError for a missing, unreadable or unpaired file.
    """
    files = [path for pattern in paths for path in storage.expand(pattern)]
    targets = [path for pattern in target_paths or [] for path in storage.expand(pattern)]
    if targets and len(targets) != len(files):
        raise InputError(
            f"parallel text needs one target file for each source file; got {len(files)} source files "
            f"({', '.join(files[:3])}) and {len(targets)} target files ({', '.join(targets[:3])})"
        )
    return [describe(path, target) for path, target in zip(files, targets or [None] * len(files), strict=True)]


def describe(path: str, target_path: str | None) -> InputFile:
    """Return an input file's format, size and schema."""
    stem, compression = split_compression(path)
    suffix = "." + stem.rpartition(".")[2]
    file_format = FORMATS.get(suffix, "text")
    if target_path is not None and file_format != "text":
        raise InputError(f"{path!r} is {file_format} and has its own columns; a target file belongs to plain text")
    if file_format == "parquet":
        footer = read_footer(path)
        return InputFile(path, "parquet", None, footer.num_rows, footer.schema.to_arrow_schema())
    return InputFile(path, file_format, compression, storage.file_size(path), None, target_path)


def split_compression(path: str) -> tuple[str, str | None]:
    """Return a path in lower case without the ending of its compression, and pyarrow's name of that."""
    stem = path.partition("?")[0].lower()
    for suffix, name in COMPRESSIONS.items():
        if stem.endswith(suffix):
            return stem.removesuffix(suffix), name
    return stem, None


def read_footer(path: str) -> pq.FileMetaData:
    """Return a Parquet file's footer; raises InputError where it is damaged."""
    try:
        with storage.open_input(path) as file:
            return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path!r} is not a readable Parquet file: {error}; replace or remove it") from error


def plan_units(files: list[InputFile], smallest: int, largest: int, wanted: int = 64) -> list[Unit]:
    """Return units of smallest to largest rows, about `wanted` of them; a function of the input alone."""
    total = sum(file.rows for file in files)
    unit_rows = max(smallest, min(largest, math.ceil(total / wanted)))
    ranges = [(file, start, stop) for file in files for start, stop in cut(file, unit_rows)]
    return [make_unit(index, *unit_range) for index, unit_range in enumerate(ranges)]


def cut(file: InputFile, unit_rows: int) -> Iterator[tuple[int, int]]:
    """Yield a file's ranges: about equal, none above unit_rows rows."""
    pieces = max(1, math.ceil(file.rows / unit_rows)) if file.can_be_cut else 1
    if file.size:
        bounds = [file.size * piece // pieces for piece in range(pieces + 1)]
        yield from pairwise(bounds)


def make_unit(index: int, file: InputFile, start: int, stop: int) -> Unit:
    """Return the unit of a file's range."""
    rows = stop - start if file.format == "parquet" else math.ceil((stop - start) / BYTES_PER_ROW)
    return Unit(index, file.path, file.format, file.compression, start, stop, rows, file.target_path)


def amount(label: str, units: list[Unit]) -> tuple[str, int, str]:
    """Return what a progress display shows of units: its label, the rows in all, and how they are called."""
    is_exact = all(unit.format == "parquet" for unit in units)
    return label if is_exact else f"{label} (rows guessed by size)", sum(unit.rows for unit in units), "row"
