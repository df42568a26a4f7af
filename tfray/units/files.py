"""Input files as their names, footers and sizes show them; no row is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
# What else files are packed by; as plain text, their bytes would be rows.
UNREAD = (".xz", ".lzma", ".lz4", ".br", ".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz")
COMPRESSION_RATIO = 3  # of text, about
EMPTY_BYTES = 512  # more than nothing takes when it is compressed, with a name in its header
THREADS = 16  # which wait for storage: an object store takes its time for each file


@dataclass(frozen=True)
class InputFile:
    """One input file as its name, footer and size show it."""

    path: str
    format: Format
    compression: str | None
    bytes: int
    """Size of the file; of Parquet the uncompressed size of all columns."""
    rows: int | None
    """Exact; None where only reading tells (text)."""
    schema: pa.Schema | None = None
    """Its columns; of Parquet as the footer has them, of the other formats once somebody has looked."""
    row_groups: tuple[int, ...] = ()
    """Rows of each row group; of Parquet only."""
    target_path: str | None = None
    """The target side of parallel text."""
    damage: str | None = None
    """Why the file cannot be used; None where nothing is known against it."""

    @property
    def paths(self) -> list[str]:
        """The file, and its target side if it is parallel text."""
        return [self.path, self.target_path] if self.target_path else [self.path]

    @property
    def is_empty(self) -> bool:
        """There is no row in it, and nothing wrong with that."""
        return not self.damage and (self.rows == 0 if self.format == "parquet" else self.bytes == 0)

    @property
    def has_header(self) -> bool:
        """Its first line names the columns."""
        return self.format in ("csv", "tsv")

    @property
    def has_lines(self) -> bool:
        """It can be cut where its lines begin; CSV only if no record goes over lines."""
        return self.format != "parquet"


def find_files(
    paths: list[str],
    target_paths: list[str] | None = None,
    setting: str | None = None,
    target_setting: str | None = None,
) -> list[InputFile]:
    """Return the input files behind paths, globs and folders, in order; damaged Parquet says so in `damage`.

    Raises InputError for a missing or unpaired file, with the names of the settings that the paths were given by.
    """
    files = [path for pattern in paths for path in storage.expand(pattern, setting)]
    targets = [path for pattern in target_paths or [] for path in storage.expand(pattern, target_setting)]
    if targets and len(targets) != len(files):
        raise InputError(
            f"{target_setting or 'parallel text'} needs one target file for each source file; got {len(files)} source "
            f"files ({', '.join(files[:3])}) and {len(targets)} target files ({', '.join(targets[:3])}); name as many, "
            "in the same order"
        )
    pairs = dict.fromkeys(zip(files, targets or [None] * len(files), strict=True))  # named twice, a file is read once
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(describe, *zip(*pairs, strict=True))) if pairs else []


def describe(path: str, target_path: str | None) -> InputFile:
    """Return an input file's format, size and schema."""
    stem, compression = split_compression(path)
    suffix = "." + stem.rpartition(".")[2]
    file_format = FORMATS.get(suffix, "text")
    if target_path is not None and file_format != "text":
        raise InputError(
            f"{path!r} is {file_format} and has its own columns; a target file belongs to plain text: leave "
            f"{target_path!r} out"
        )
    if file_format == "parquet":
        return read_footer(path)
    size = size_of(path, compression)
    packed = [other for other in (path, target_path) if other and split_compression(other)[0].endswith(UNREAD)]
    if packed:
        reason = f"{storage.base_name(packed[0])} is packed in a way that is not read; use .gz, .zst or .bz2"
        return InputFile(path, file_format, compression, size, None, target_path=target_path, damage=reason)
    if target_path is not None and not size and size_of(target_path, split_compression(target_path)[1]):
        raise InputError(
            f"parallel text must have as many lines on both sides; {path!r} is empty, {target_path!r} is not; repair "
            "or replace them"
        )
    return InputFile(path, file_format, compression, size, None, target_path=target_path)


def size_of(path: str, compression: str | None) -> int:
    """Return a file's size, 0 also where what is compressed in it is nothing."""
    size = storage.file_size(path)
    return 0 if compression and size < EMPTY_BYTES and holds_nothing(path, compression) else size


def holds_nothing(path: str, compression: str) -> bool:
    """Say whether a compressed file is a whole one of no bytes, as jobs write for a part without rows."""
    try:
        return not any(storage.read_chunks(path, compression, stop=1))
    except storage.READ_ERRORS:
        return False


def split_compression(path: str) -> tuple[str, str | None]:
    """Return a path in lower case without the ending of its compression, and pyarrow's name of that."""
    stem = storage.split_options(path)[0].lower()
    for suffix, name in COMPRESSIONS.items():
        if stem.endswith(suffix):
            return stem.removesuffix(suffix), name
    return stem, None


def read_footer(path: str) -> InputFile:
    """Return a Parquet file as its footer describes it."""
    try:
        with storage.open_patiently(path) as file:
            footer = pq.read_metadata(file)
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        rows = tuple(group.num_rows for group in groups)
        size = sum(group.total_byte_size for group in groups)
        return InputFile(path, "parquet", None, size, sum(rows), footer.schema.to_arrow_schema(), rows)
    except storage.READ_ERRORS as error:
        return InputFile(path, "parquet", None, 0, None, damage=f"it is not a readable Parquet file: {error}")


def uncompressed(file: InputFile) -> int:
    """Return a file's uncompressed bytes, about."""
    return file.bytes * (COMPRESSION_RATIO if file.compression else 1)
