"""CSV and TSV -> records by the names in the first line.

TSV knows no quotes: a line is a record. In CSV, fields in quotes may go over lines; a quote that never
closes would swallow all that follows, so the line where a bad record began is one bad row, and reading
goes on at the line after it.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from tfray.corpus.lines import read_lines
from tfray.corpus.rows import BLOCK_BYTES, BLOCK_ROWS, Block, DamagedFile, is_encodable
from tfray.errors import InputError
from tfray.units.files import InputFile
from tfray.units.plan import Unit

LONGEST_RECORD = 1 << 20  # characters
MOST_LINES = 1000  # of one record
csv.field_size_limit(LONGEST_RECORD)

Fields = tuple[list[str], str | None]  # of a record, or none and the error


def read_tsv(unit: Unit, names: list[str]) -> Iterator[Block]:
    """Yield a TSV unit's lines by the names in the file's first line."""
    return blocks_of(without_header(unit, read_tsv_fields(unit)), read_names(unit), names, "tsv")


def read_csv(unit: Unit, names: list[str]) -> Iterator[Block]:
    """Yield a CSV unit's records by the names in the file's first line."""
    header = read_names(unit)
    return blocks_of(without_header(unit, read_csv_fields(unit, len(header))), header, names, "csv")


def without_header(unit: Unit, records: Iterator[Fields]) -> Iterator[Fields]:
    """Return a unit's records without the header, which is the first one of a file."""
    if unit.start == 0:
        next(records, None)
    return records


def blocks_of(records: Iterator[Fields], header: list[str], names: list[str], kind: str) -> Iterator[Block]:
    """Yield records as the named columns, in blocks of bounded size."""
    places = {name: header.index(name) for name in names if name in header}
    rows: list[list[str]] = []
    errors: dict[int, str] = {}
    damage, size, none = None, 0, [None] * len(header)
    try:
        for fields, error in records:
            if not error and len(fields) != len(header):
                error = f"bad_{kind}: {len(fields)} fields where the header has {len(header)}"
                error = error if fields else "blank_line: no fields in the line"
            if error:
                errors[len(rows)] = error
                fields = none
            else:
                size += sum(map(len, fields))
            rows.append(fields)  # type: ignore[arg-type]
            if len(rows) == BLOCK_ROWS or size > BLOCK_BYTES:
                yield Block({name: [row[at] for row in rows] for name, at in places.items()}, len(rows), errors)
                rows, errors, size = [], {}, 0
    except DamagedFile as error:
        damage = error
    if rows:
        yield Block({name: [row[at] for row in rows] for name, at in places.items()}, len(rows), errors)
    if damage:
        raise damage


def read_tsv_fields(unit: Unit | InputFile) -> Iterator[Fields]:
    """Yield the fields of each line of a unit (of a whole file), header included."""
    start, stop = (unit.start, unit.end) if isinstance(unit, Unit) else (0, None)
    for lines in read_lines(unit.path, unit.compression, start, stop):
        for index, line in enumerate(lines.without_returns().texts):
            yield line_fields(line), lines.errors.get(index)


def line_fields(line: bytes | None) -> list[str]:
    """Return a line's fields between tabs; none of an empty line."""
    return as_text(line).split("\t") if line else []


def as_text(line: bytes) -> str:
    """Return a line as text; bytes that are not UTF-8 become lone surrogates, refused in the field where they are."""
    return line.decode("utf-8", "surrogateescape")


def read_csv_fields(file: Unit | InputFile, columns: int = 0) -> Iterator[Fields]:
    """Yield the fields of each record of a unit (of a whole file), header included, or none and the error.

    Where the number of columns is not given, it is that of the first record.
    """
    feed = LineFeed(file, columns)
    while True:
        reader = csv.reader(feed, strict=True)  # else an open quote makes one good row of all that follows
        try:
            while True:
                feed.begin()
                fields = next(reader)
                feed.check(fields)
                yield fields, None
        except StopIteration:
            return
        except csv.Error as error:
            yield [], feed.go_back() or f"bad_csv: {error}"


class LineFeed:
    """The lines of a file for Python's csv, which can go back to the line after the present record's first."""

    def __init__(self, file: Unit | InputFile, columns: int) -> None:
        self.lines = self.read(file)
        self.ahead: deque[tuple[str, str | None]] = deque()  # to be read again
        self.taken: list[tuple[str, str | None]] = []  # by the present record
        self.size = 0
        self.columns = columns
        self.damage: DamagedFile | None = None

    @staticmethod
    def read(file: Unit | InputFile) -> Iterator[tuple[str, str | None]]:
        """Yield each line with its line feed, or nothing and the error."""
        start, stop = (file.start, file.end) if isinstance(file, Unit) else (0, None)
        for lines in read_lines(file.path, file.compression, start, stop):
            for index, line in enumerate(lines.texts):
                yield ("", lines.errors[index]) if line is None else (as_text(line) + "\n", None)

    def begin(self) -> None:
        """Forget the lines of the last record: another one begins."""
        self.taken.clear()
        self.size = 0

    def check(self, fields: list[str]) -> None:
        """Raise csv.Error where a record over several lines is none: by its fields, or by an odd number of quotes."""
        self.columns = self.columns or len(fields)
        if len(self.taken) == 1:
            return
        if len(fields) != self.columns:
            raise csv.Error(f"{len(fields)} fields in {len(self.taken)} lines where the header has {self.columns}")
        # A quote that never closes pairs with one of a later record; that makes their number odd.
        if sum(line.count('"') for line, _ in self.taken) % 2:
            raise csv.Error(f"an odd number of quotes in {len(self.taken)} lines")

    def go_back(self) -> str | None:
        """Put back all lines of the present record but the first; return that one's own error."""
        first, *others = self.taken
        self.ahead.extendleft(reversed(others))
        self.begin()
        return first[1]

    def __iter__(self) -> LineFeed:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= MOST_LINES or self.size > LONGEST_RECORD:
            raise csv.Error(f"a record of more than {MOST_LINES} lines or {LONGEST_RECORD} characters; an open quote?")
        line = self.ahead.popleft() if self.ahead else self.next_line()
        self.taken.append(line)
        self.size += len(line[0])
        if line[1]:
            raise csv.Error("a line that cannot be read follows in the same record")
        return line[0]

    def next_line(self) -> tuple[str, str | None]:
        """Return the file's next line; where it is damaged in mid-record, that record's lines come first."""
        if not self.damage:
            try:
                return next(self.lines)
            except DamagedFile as error:
                self.damage = error
        if not self.taken:
            raise self.damage
        raise csv.Error("the file cannot be read further") from self.damage


def read_names(file: Unit | InputFile) -> list[str]:
    """Return the column names in a CSV or TSV file's first line."""
    read = read_tsv_fields if file.format == "tsv" else read_csv_fields
    whole = file if isinstance(file, InputFile) else InputFile(file.path, file.format, file.compression, 0, None)
    names, error = next(read(whole), ([], None))
    if not names or not all(map(is_encodable, names)):
        reason = error or ("it is not UTF-8" if names else "it is blank")
        raise InputError(
            f"the first line of {file.path!r} must name the columns: {reason}; add a line of column names, as UTF-8"
        )
    return names
