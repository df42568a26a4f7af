"""What must be known of a whole corpus before any of its rows can be judged.

One streaming pass over the units that need it notes, unit by unit: the rows with the smallest seeded
hashes, which are the tokenizer's sample; the labels; the keys of each row, by which duplicates are
found; the texts of validation and test data, which training must not see. All of it follows from the
rows' texts and their order, and not from who read them.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfray import storage
from tfray.config import SPLITS, CorpusConfig
from tfray.corpus.clean import Cleaned
from tfray.corpus.duplicates import write_keys
from tfray.corpus.hashing import TRAIN, hash_pairs, hash_texts, priority, split_of
from tfray.corpus.near import near_keys
from tfray.corpus.read import DamagedFile
from tfray.tokens.output import describe
from tfray.tokens.recipe import Recipe
from tfray.units.ledger import published, record_unit
from tfray.units.lock import Ticket
from tfray.units.plan import Unit

UNIT_BITS = 36  # a key's ordinal is the unit's index and, in these bits, the row's number in the unit
MOST_LABELS = 1000

SAMPLE_SCHEMA = pa.schema({"priority": pa.uint64(), "source": pa.string(), "target": pa.string()})
HELD_OUT_SCHEMA = pa.schema({"source": pa.uint64(), "target": pa.uint64()})


class Questions(NamedTuple):
    """What a survey is to find out."""

    folder: str
    """Where its notes go."""
    sample_share: float
    """Share of the training rows, by their hashes, that the sample may be drawn from; 0: no sample."""
    partitions: int
    """Parts into which the keys of duplicates are split by their hash; 0: no duplicates are looked for."""
    ticket: Ticket
    """Of the driver: what a killed one has left behind notes nothing for another run."""


class SurveyUnit:
    """Stage: a unit -> notes in the survey's folder."""

    def __init__(self, recipe: Recipe, questions: Questions) -> None:
        self.recipe, self.questions = recipe, questions

    def __call__(self, unit: Unit) -> dict:
        self.questions.ticket.check()
        notes = Notes(self.recipe, self.questions, unit)
        try:
            for cleaned in self.recipe.clean_blocks(unit):
                notes.add(cleaned)
        except DamagedFile:
            pass  # counted by the pass that writes the shards
        self.questions.ticket.check()
        notes.publish()
        return {"rows": notes.rows, "bytes": unit.bytes}


class Notes:
    """What is noted of one unit."""

    def __init__(self, recipe: Recipe, questions: Questions, unit: Unit) -> None:
        self.recipe, self.questions, self.unit = recipe, questions, unit
        self.rows = 0
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}  # the first row of each reason, as people look it up
        self.labels: set[str] = set()
        self.sample: list[pa.Table] = []
        self.held_out: list[pa.Table] = []
        self.keys: list[list[np.ndarray]] = []
        self.ordinals: list[np.ndarray] = []

    def add(self, cleaned: Cleaned) -> None:
        """Take note of a block."""
        self.rows += len(cleaned.rows) + len(cleaned.rejected)
        for row in first_of_each(cleaned.rejected):
            self.examples.setdefault(row["reason"], [describe(self.unit, row)])
        self.rejected.update(cleaned.rejected["reason"].to_pylist())
        if not len(cleaned.rows):
            return
        splits = split_numbers(self.recipe, self.unit, cleaned)
        self.note_sample(cleaned, splits)
        if self.recipe.config.held_out != "off":
            self.note_held_out(cleaned, splits)
        if self.recipe.is_classification and self.is_training:
            self.labels.update(pc.unique(cleaned.target).to_pylist())
            self.labels = set(sorted(self.labels)[: MOST_LABELS + 1])
        if self.questions.partitions and self.is_training:
            self.keys.append(row_keys(self.recipe.config, cleaned))
            self.ordinals.append((self.unit.index << UNIT_BITS) + cleaned.rows - self.unit.first_row)

    @property
    def is_training(self) -> bool:
        return self.recipe.splits[self.unit.corpus] == "train"

    def note_sample(self, cleaned: Cleaned, splits: np.ndarray) -> None:
        """Keep the rows of the training side whose hash is small enough."""
        if not (self.questions.sample_share and self.is_training):
            return
        salt = seed_salt(self.recipe.config, "sample")
        if self.recipe.is_classification:  # labels have tokens of their own
            hashes = hash_texts(cleaned.source, salt)
        else:
            hashes = hash_pairs(cleaned.source, cleaned.target, salt)
        priorities = priority(hashes)
        chosen = priorities <= np.uint64(min(2**64 - 1, int(self.questions.sample_share * 2**64)))
        rows = pa.array(np.flatnonzero(chosen & (splits == TRAIN)))
        columns = [pa.array(priorities).take(rows), cleaned.source.take(rows), cleaned.target.take(rows)]
        self.sample.append(pa.table(columns, schema=SAMPLE_SCHEMA))

    def note_held_out(self, cleaned: Cleaned, splits: np.ndarray) -> None:
        """Keep the hashes of the texts of validation and test data."""
        rows = np.flatnonzero(splits)
        columns = [text_hashes(side)[rows] for side in (cleaned.source, cleaned.target)]
        self.held_out.append(pa.table([pa.array(column) for column in columns], schema=HELD_OUT_SCHEMA))

    def publish(self) -> None:
        """Write the notes; the record comes last."""
        folder, stem = self.questions.folder, self.unit.stem
        write_notes(storage.join(folder, f"sample/{stem}.parquet"), self.sample)
        write_notes(storage.join(folder, f"held_out/{stem}.parquet"), self.held_out)
        if self.keys:
            path = storage.join(folder, f"keys/{stem}.arrow")
            kinds = [np.concatenate(blocks) for blocks in zip(*self.keys, strict=True)]
            write_keys(path, kinds, np.concatenate(self.ordinals), self.questions.partitions)
        labels = sorted(self.labels)
        record = {"rows": self.rows, "rejected": self.rejected, "examples": self.examples, "labels": labels}
        record_unit(folder, self.unit, record)


def first_of_each(rejected: pa.Table) -> list[dict]:
    """Return the first rejected row of each reason."""
    reasons = rejected["reason"].to_pylist()
    return rejected.take(pa.array([reasons.index(reason) for reason in set(reasons)], pa.int64())).to_pylist()


def split_numbers(recipe: Recipe, unit: Unit, cleaned: Cleaned) -> np.ndarray:
    """Return for each row the number of its split in SPLITS; training rows may be held out by their source."""
    split = recipe.splits[unit.corpus]
    config = recipe.config
    if split != "train" or not (config.valid_share or config.test_share):
        return np.full(len(cleaned.rows), SPLITS.index(split), np.uint8)
    hashes = hash_texts(cleaned.source, seed_salt(config, "split"))
    return split_of(hashes, config.valid_share, config.test_share)


def seed_salt(config: CorpusConfig, purpose: str) -> bytes:
    """Return the salt that makes the hashes of one purpose follow from the seed."""
    return f"{purpose} {config.seed}".encode()


def text_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return 64 bits of each text's hash: of n held-out texts, one hits a foreign row once in 2^64 / n rows."""
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return hash_texts(array)[:, 0].copy()


def row_keys(config: CorpusConfig, cleaned: Cleaned) -> list[np.ndarray]:
    """Return the kinds of hashes by which duplicates are found: a row that equals another in any is one."""
    clean = config.clean
    keys: list[np.ndarray] = []
    if clean.duplicates == "pair":
        keys.append(hash_pairs(cleaned.source, cleaned.target))
    if clean.duplicates in ("source", "either"):
        keys.append(hash_texts(cleaned.source))
    if clean.duplicates in ("target", "either"):
        keys.append(hash_texts(cleaned.target))
    if clean.near_duplicates:
        keys += near_keys(cleaned.source, clean.near_duplicates)
    return keys


def write_notes(path: str, tables: list[pa.Table]) -> None:
    """Publish tables as one file; nothing where there is no row."""
    table = pa.concat_tables(tables) if tables else None
    if table is not None and len(table):
        storage.publish_table(path, table)


def read_notes(folder: str, kind: str, schema: pa.Schema) -> pa.Table:
    """Return the notes of one kind of all units."""
    tables = []
    for path in published(storage.join(folder, kind)):
        with storage.open_input(path) as file:
            tables.append(pq.read_table(file))
    return pa.concat_tables([schema.empty_table(), *tables])
