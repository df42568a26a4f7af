"""The first step of a unit: read its rows, judge them, and turn their texts into ids."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from tfray import storage
from tfray.corpus.clean import unusable
from tfray.corpus.normalize import normalize
from tfray.corpus.read import DamagedFile, Rows, read_blocks
from tfray.errors import InputError
from tfray.inference.assignment import Assignment
from tfray.inference.attempts import GUILTY
from tfray.inference.columns import null_rows
from tfray.inference.handover import Encoded
from tfray.inference.sentences import split_sentences
from tfray.tokens.encoder import Encoder
from tfray.tokens.special import EOS_ID
from tfray.units.plan import Unit

Value = TypeVar("Value")
DIED = "the process died several times while it read these rows"


class EncodedTexts(NamedTuple):
    """What becomes of some rows' texts, by their indices, as in Encoded."""

    errors: dict[int, str]
    notes: dict[int, str]
    pieces: dict[int, list[np.ndarray]]
    targets: dict[int, np.ndarray]
    truncated: list[int]


def select(rows: Rows, chosen: list[int], text_columns: set[str]) -> Rows:
    """Return the texts of some rows; their places among them are their indices."""
    places = {index: place for place, index in enumerate(chosen)}
    errors = {places[index]: error for index, error in rows.errors.items() if index in places}
    # Arrow takes no rows of string views, nor of list views in other columns.
    texts = pa.table({name: rows.table[name].cast(pa.string()) for name in sorted(text_columns)})
    return Rows(texts.take(pa.array(chosen, pa.int64())), errors, rows.first_row)


def rename(values: dict[int, Value], chosen: list[int]) -> dict[int, Value]:
    """Return values of places among the chosen rows by the indices of these."""
    return {chosen[place]: value for place, value in values.items()}


class EncodeUnit:
    """Stage: loads the tokenizer once."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.encoder = Encoder(assignment.folder.tokenizer)
        self.text = assignment.folder.text
        self.longest = assignment.folder.architecture.max_length

    def __call__(self, unit: Unit) -> Encoded:
        self.assignment.check_place()
        died = Rows(self.assignment.rows.empty_table(), {}, unit.first_row), DIED
        rows, damage = self.assignment.attempts(unit, "read").carry_out_whole(lambda: self.read(unit)) or died
        attempts = self.assignment.attempts(unit, "encode")
        errors, notes, pieces, targets, truncated = attempts.carry_out(partial(self.encode_rows, rows), len(rows.table))
        errors |= dict.fromkeys(attempts.guilty, GUILTY)
        errors |= {row: rows.errors.get(row) or f"damaged_file: {damage}" for row in self.lost(rows, unit)}
        return Encoded(unit, self.filled(rows, unit), errors, notes, pieces, targets, truncated, damage)

    def encode_rows(self, rows: Rows, chosen: list[int]) -> EncodedTexts:
        """Return what becomes of chosen rows' texts; most often all are chosen."""
        part = rows if len(chosen) == len(rows.table) else select(rows, chosen, self.assignment.text_columns)
        errors, notes, texts = self.judge(part)
        targets = self.encode_targets(part, errors) if self.assignment.target else {}
        pieces, truncated = self.encode_sources(texts, errors)
        return EncodedTexts(
            rename(errors, chosen),
            rename(notes, chosen),
            rename(pieces, chosen),
            rename(targets, chosen),
            [chosen[place] for place in truncated],
        )

    def read(self, unit: Unit) -> tuple[Rows, str | None]:
        """Return a unit's rows, and why they are not all; raises InputError where the file is another by now."""
        self.check_identity(unit.path)
        blocks: list[Rows] = []
        try:
            blocks.extend(read_blocks(unit, self.assignment.rows, self.assignment.text_columns, passes_all=True))
        except DamagedFile as error:
            self.check_identity(unit.path)  # it may have been replaced while it was read
            return self.joined(unit, blocks), error.reason
        return self.joined(unit, blocks), None

    def check_identity(self, path: str) -> None:
        """Raise InputError where a file is not what it was when the run began."""
        known = self.assignment.identities.get(path)
        if known is not None and storage.file_identity(path)[1:] != known:
            raise InputError(
                f"input {path!r} has changed since this run began; put the old file back, or begin anew with "
                "--mode overwrite"
            )

    def joined(self, unit: Unit, blocks: list[Rows]) -> Rows:
        """Return blocks as one; where rows of Parquet between them cannot be read, nulls stand in their place."""
        schema = self.assignment.rows
        tables, errors, row = [], {}, unit.first_row
        for block in blocks:
            if block.first_row > row:
                tables.append(null_rows(schema, block.first_row - row))
                errors |= dict.fromkeys(range(row - unit.first_row, block.first_row - unit.first_row), "")
            tables.append(block.table)
            errors |= {block.first_row - unit.first_row + index: error for index, error in block.errors.items()}
            row = block.first_row + len(block.table)
        return Rows(pa.concat_tables(tables) if tables else schema.empty_table(), errors, unit.first_row)

    def lost(self, rows: Rows, unit: Unit) -> list[int]:
        """Return the indices of rows that are known to be there and could not be read."""
        between = [index for index, error in rows.errors.items() if not error]
        missing = range(len(rows.table), unit.stop - unit.start) if unit.format == "parquet" else range(0)
        return [*between, *missing]

    def filled(self, rows: Rows, unit: Unit) -> pa.Table:
        """Return the rows, with nulls at the end for those that could not be read."""
        missing = unit.stop - unit.start - len(rows.table) if unit.format == "parquet" else 0
        return pa.concat_tables([rows.table, null_rows(rows.table.schema, missing)]) if missing > 0 else rows.table

    def judge(self, rows: Rows) -> tuple[dict[int, str], dict[int, str], dict[int, str]]:
        """Return why rows cannot be used, what else is wrong with others, and the texts of the others."""
        errors: dict[int, str] = {}
        texts: dict[int, str] = {}
        raw = rows.table[self.assignment.source].cast(pa.string()).to_pylist()
        limit = self.assignment.inference.max_characters
        for index, (text, clean) in enumerate(zip(raw, self.normalized(raw), strict=True)):
            # A row whose text can be used is predicted even where another of its columns is bad.
            error = (rows.errors.get(index) if clean is None else None) or unusable("source", clean, limit)
            if error:
                errors[index] = error
            else:
                texts[index] = str(text if self.splits else clean)
        notes = {index: error for index, error in rows.errors.items() if index not in errors and error}
        return errors, notes, texts

    @property
    def splits(self) -> bool:
        """Sources may be split into sentences."""
        return self.assignment.task == "generate" and self.assignment.inference.sentences != "off"

    def normalized(self, texts: list[str | None]) -> list[str | None]:
        return normalize(pa.array(texts, pa.string()), self.text).to_pylist()

    def encode_sources(
        self, texts: dict[int, str], errors: dict[int, str]
    ) -> tuple[dict[int, list[np.ndarray]], list[int]]:
        """Return the pieces of rows and those whose source is cut; what the model cannot take becomes an error."""
        config = self.assignment.inference
        usable = {index: text for index, text in texts.items() if index not in errors}
        pieces = {index: [ids] for index, ids in zip(usable, self.encode([*usable.values()]), strict=True)}
        if self.splits:
            chosen = [i for i in usable if config.sentences == "all" or len(pieces[i][0]) > self.longest]
            sentences = {index: split_sentences(usable[index], config.language) for index in chosen}
            encoded = iter(self.encode([sentence for each in sentences.values() for sentence in each]))
            # A sentence that normalization leaves nothing of, such as a control character, is left out.
            for index, each in sentences.items():
                found = [ids for ids in (next(encoded) for _ in each) if len(ids) > 1]
                pieces[index] = found or pieces[index]
        return self.fit(pieces, errors)

    def fit(
        self, pieces: dict[int, list[np.ndarray]], errors: dict[int, str]
    ) -> tuple[dict[int, list[np.ndarray]], list[int]]:
        """Return pieces that the model takes; the search itself cuts and splits in task generate."""
        long = self.assignment.generation.long_sources
        truncated = []
        for index, each in list(pieces.items()):
            longest = max(map(len, each))
            if longest <= self.longest or (self.assignment.task == "generate" and long != "refuse"):
                continue
            if long == "truncate" and self.assignment.task != "score":
                pieces[index] = [np.append(ids[: self.longest - 1], np.int32(EOS_ID)) for ids in each]
                truncated.append(index)
                continue
            what = "source" if len(each) == 1 else "source has a sentence that"
            errors[index] = f"too_long: the {what} has {longest} tokens, the model takes {self.longest}"
            del pieces[index]
        return pieces, truncated

    def encode_targets(self, rows: Rows, errors: dict[int, str]) -> dict[int, np.ndarray]:
        """Return the ids of given targets; what cannot be scored becomes an error."""
        assert self.assignment.target is not None
        texts = self.normalized(rows.table[self.assignment.target].cast(pa.string()).to_pylist())
        limit = self.assignment.inference.max_characters
        for index, text in enumerate(texts):
            error = unusable("target", text, limit)
            if error and index not in errors:
                errors[index] = str(rows.errors.get(index) or error)
        usable = {index: text for index, text in enumerate(texts) if index not in errors}
        targets = dict(zip(usable, self.encode([text or "" for text in usable.values()]), strict=True))
        for index, ids in targets.items():
            if len(ids) > self.longest:
                errors[index] = f"too_long: the target has {len(ids)} tokens, the model takes {self.longest}"
        return {index: ids for index, ids in targets.items() if index not in errors}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of texts, normalized, an end after each."""
        values, offsets = self.encoder.encode(normalize(pa.array(texts, pa.string()), self.text))
        end = np.int32(EOS_ID)
        return [np.append(values[start:stop], end) for start, stop in pairwise(offsets)]
