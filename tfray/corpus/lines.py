"""Text files -> lines in blocks of bounded size; plain text, and parallel text side by side.

Only a line feed ends a line (U+2028 is text); a last line without one is a line; a byte-order mark at
the start of a file goes. A line that is too long is dropped while it is read, and keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.corpus.rows import BLOCK_BYTES, BLOCK_ROWS, Block, DamagedFile, check_text
from tfray.units.files import split_compression
from tfray.units.plan import Unit

LONGEST_LINE = 16 << 20  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Lines(NamedTuple):
    """Some consecutive lines without their line feeds, none where there is an error."""

    texts: list[bytes | None]
    errors: dict[int, str]

    def first(self, count: int) -> Lines:
        """Return the first lines."""
        return Lines(self.texts[:count], {index: error for index, error in self.errors.items() if index < count})

    def after(self, count: int) -> Lines:
        """Return the lines after the first ones."""
        errors = {index - count: error for index, error in self.errors.items() if index >= count}
        return Lines(self.texts[count:], errors)

    def joined(self, other: Lines) -> Lines:
        """Return these lines and others after them."""
        shift = len(self.texts)
        errors = self.errors | {index + shift: error for index, error in other.errors.items()}
        return Lines(self.texts + other.texts, errors)

    def without_returns(self) -> Lines:
        """Return the lines without the carriage return that may stand before a line feed."""
        return Lines([text[:-1] if text and text[-1] == 13 else text for text in self.texts], self.errors)


def read_lines(path: str, compression: str | None, start: int = 0, stop: int | None = None) -> Iterator[Lines]:
    """Yield a file's lines in blocks, those from byte start (where a line begins) to stop.

    Raises DamagedFile after the last line that can be read.
    """
    held, size, damage = Lines([], {}), 0, None
    try:
        for lines in split_lines(read_chunks(path, compression, start, stop), has_mark=start == 0):
            held = held.joined(lines) if held.texts else lines
            size += sum(map(len, filter(None, lines.texts)))
            while len(held.texts) >= BLOCK_ROWS:
                yield held.first(BLOCK_ROWS)
                held, size = held.after(BLOCK_ROWS), 0
            if size >= BLOCK_BYTES:
                yield held
                held, size = Lines([], {}), 0
    except DamagedFile as error:
        damage = error
    if held.texts:
        yield held
    if damage:
        raise damage


def read_chunks(path: str, compression: str | None, start: int, stop: int | None) -> Iterator[bytes]:
    """Yield a file's uncompressed bytes; raises DamagedFile where they end too early or cannot be uncompressed."""
    position = start
    try:
        for chunk in storage.read_chunks(path, compression, start, stop):
            position += len(chunk)
            yield chunk
    except storage.READ_ERRORS as error:
        raise DamagedFile(path, str(error)) from error
    if stop is not None and position < stop:
        raise DamagedFile(path, "it has shrunk since the job was planned")


def split_lines(chunks: Iterable[bytes], has_mark: bool) -> Iterator[Lines]:
    """Yield the lines that end in each chunk."""
    parts: list[bytes] = []  # of a line that has not ended
    length = 0
    for chunk in chunks:
        pieces: list[bytes | None] = [*chunk.split(b"\n")]
        length += len(pieces[0] or b"")
        if length <= LONGEST_LINE:
            parts.append(pieces[0] or b"")
        else:
            parts.clear()
        if len(pieces) > 1:
            tail = pieces.pop() or b""
            pieces[0], error = end_line(parts, length, has_mark)
            yield Lines(pieces, {0: error} if error else {})
            parts, length, has_mark = [tail], len(tail), False
    if length:
        text, error = end_line(parts, length, has_mark)
        yield Lines([text], {0: error} if error else {})


def end_line(parts: list[bytes], length: int, has_mark: bool) -> tuple[bytes | None, str | None]:
    """Return a line made of its parts, or none and the error of one that is too long."""
    if length > LONGEST_LINE:
        return None, f"too_long: the line has {length} bytes, more than {LONGEST_LINE}"
    line = b"".join(parts)
    return line.removeprefix(BYTE_ORDER_MARK) if has_mark else line, None


def read_text(unit: Unit, names: list[str]) -> Iterator[Block]:
    """Yield a plain text unit's lines as `source`, with those of its target side as `target`."""
    sources = read_lines(unit.path, unit.compression, unit.start, unit.end)
    if unit.target_path is None:
        for lines in sources:
            yield text_block({"source": lines})
        return
    targets = TargetSide(unit)
    for lines in sources:
        pair = targets.take(len(lines.texts))
        if pair.texts:
            yield text_block({"source": lines.first(len(pair.texts)), "target": pair})
        if targets.damage:
            raise targets.damage


def text_block(sides: dict[str, Lines]) -> Block:
    """Return the lines of one side or both as columns."""
    columns: dict[str, list | pa.Array] = {}
    errors: dict[int, str] = {}
    for name, lines in sides.items():
        columns[name], bad = check_text(pa.array(lines.without_returns().texts, pa.binary()))
        errors = {**lines.errors, **bad, **errors}
    return Block(columns, len(next(iter(sides.values())).texts), errors)


class TargetSide:
    """The target lines of a unit of parallel text, taken as the source lines need them."""

    def __init__(self, unit: Unit) -> None:
        path = str(unit.target_path)
        self.blocks = read_lines(path, split_compression(path)[1], unit.target_start)
        self.held = Lines([], {})
        self.damage: DamagedFile | None = None
        self.shortage = DamagedFile(path, f"it has fewer lines than {unit.path!r}")
        self.take(unit.target_skip)

    def take(self, count: int) -> Lines:
        """Return the next lines; where there are fewer, `damage` says why."""
        while len(self.held.texts) < count and self.damage is None:
            try:
                self.held = self.held.joined(next(self.blocks))
            except StopIteration:
                self.damage = self.shortage
            except DamagedFile as error:
                self.damage = error
        taken, self.held = self.held.first(count), self.held.after(count)
        return taken
