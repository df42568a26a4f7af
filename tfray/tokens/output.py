"""What a unit becomes: shards of each split, a file of rejected rows, and the counts of its record."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfray import storage
from tfray.corpus.clean import REJECTED_SCHEMA, Cleaned
from tfray.tokens.ragged import Ragged
from tfray.tokens.shards import Shard, shard_schema, write_shard
from tfray.units.plan import Unit

EXAMPLES_SHOWN = 3  # of each reason, per unit and in the report
REJECTED, TEST_TEXT = "rejected", "test_text"
PLACE = {"corpus": pa.string(), "file": pa.string()}
TEST_SCHEMA = pa.schema(PLACE | {"row": pa.int64(), "source": pa.string(), "target": pa.string()})
EXCERPT = 60  # characters of a row in an example


class UnitOutput:
    """Takes a unit's rows as they come, and holds at most one shard of each split."""

    def __init__(self, folder: str, unit: Unit, vocab_size: int, shard_tokens: int, keep_rejected: bool) -> None:
        self.folder, self.unit, self.shard_tokens, self.keep_rejected = folder, unit, shard_tokens, keep_rejected
        self.schema = shard_schema(vocab_size)
        self.waiting: dict[str, list[pa.Table]] = {}
        self.waiting_tokens: Counter[str] = Counter()
        self.shards: dict[str, list[Shard]] = {}
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.words = 0
        self.damage: str | None = None
        self.stack = ExitStack()
        self.writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> UnitOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stack.__exit__(kind, error, trace)
            return
        with self.stack:
            for split in sorted(self.waiting):
                self.write_shard(split)

    def table(self, source: Ragged, target: Ragged, lengths: list[np.ndarray], rows: np.ndarray) -> pa.Table:
        """Return a block as the columns of a shard."""
        kind = self.schema.field("source_ids").type.value_type.to_pandas_dtype()
        ids = [
            pa.ListArray.from_arrays(pa.array(side.offsets.astype(np.int32)), pa.array(side.values.astype(kind)))
            for side in (source, target)
        ]
        same = pa.array(np.zeros(len(rows), np.int32))
        names = [pa.DictionaryArray.from_arrays(same, pa.array([name])) for name in (self.unit.corpus, self.unit.path)]
        counts = [pa.array(side.astype(np.int32)) for side in lengths]
        return pa.table([*ids, *counts, *names, pa.array(rows)], schema=self.schema)

    def write(self, split: str, table: pa.Table, words: int) -> None:
        """Take pairs for the shards of a split."""
        if not len(table):
            return
        self.words += words
        self.waiting.setdefault(split, []).append(table)
        for name in ("source_length", "target_length"):
            self.waiting_tokens[split] += int(table[name].to_numpy().sum())
        if self.waiting_tokens[split] >= self.shard_tokens:
            self.write_shard(split)

    def write_shard(self, split: str) -> None:
        """Publish what waits for a split as its next shard."""
        tables = self.waiting.pop(split)
        self.waiting_tokens.pop(split)
        done = self.shards.setdefault(split, [])
        path = storage.join(self.folder, f"{split}/{self.unit.stem}-{len(done):03d}.parquet")
        done.append(write_shard(path, self.unit.corpus, tables))

    def reject(self, rows: pa.Table) -> None:
        """Count rows that are not used, show the first of each reason, and keep them all where that is wanted."""
        if not len(rows):
            return
        for reason in rows["reason"].value_counts().to_pylist():
            self.rejected[reason["values"]] += reason["counts"]
        for reason in rows["reason"].unique().to_pylist():
            shown = self.examples.setdefault(reason, [])
            if len(shown) < EXAMPLES_SHOWN:
                chosen = rows.filter(pc.equal(rows["reason"], reason)).slice(0, EXAMPLES_SHOWN - len(shown)).to_pylist()
                shown += [describe(self.unit, row) for row in chosen]
        if self.keep_rejected:
            self.store_text(REJECTED, rows)

    def store_text(self, folder: str, table: pa.Table) -> None:
        """Add rows of text to the unit's file in a folder, with their place in the input."""
        names = [pa.array([name] * len(table), pa.string()) for name in (self.unit.corpus, self.unit.path)]
        placed = pa.table([*names, *table.columns], names=[*PLACE, *table.column_names])
        if folder not in self.writers:
            path = storage.join(self.folder, f"{folder}/{self.unit.stem}.parquet")
            file = self.stack.enter_context(storage.publish(path))
            writer = pq.ParquetWriter(file, placed.schema, compression="zstd")
            self.writers[folder] = self.stack.enter_context(writer)
        self.writers[folder].write_table(placed)

    def lose(self, reason: str) -> None:
        """Count the rows that the unit still had when its file turned out to be damaged, at least one."""
        missing = max(1, self.unit.rows - self.rows)
        self.damage = f"{self.unit.path}: {reason}"
        self.rejected["damaged_file"] += missing
        self.examples["damaged_file"] = [f"{self.damage} (about {missing} rows lost)"]

    @property
    def rows(self) -> int:
        """Rows of the input that are accounted for."""
        written = sum(shard.pairs for shards in self.shards.values() for shard in shards)
        waiting = sum(len(table) for tables in self.waiting.values() for table in tables)
        return written + waiting + self.rejected.total()

    @property
    def tokens(self) -> int:
        """Tokens of both sides that were written."""
        shards = [shard for shards in self.shards.values() for shard in shards]
        return sum(shard.source_tokens + shard.target_tokens for shard in shards)

    def record(self) -> dict:
        """Return what the manifest needs to know of the unit."""
        return {
            "corpus": self.unit.corpus,
            "path": self.unit.path,
            "rows": self.rows,
            "words": self.words,
            "shards": {split: [shard._asdict() for shard in shards] for split, shards in self.shards.items()},
            "rejected": dict(self.rejected),
            "examples": self.examples,
            "damage": self.damage,
        }


def rejected_rows(cleaned: Cleaned, mask: np.ndarray, reason: str, message: str | list[str]) -> pa.Table:
    """Return some rows of a block as rejected ones, for one reason."""
    chosen = pa.array(mask)
    count = int(mask.sum())
    messages = [message] * count if isinstance(message, str) else message
    columns = [
        pa.array(cleaned.rows[mask]),
        pa.array([reason] * count, pa.string()),
        pa.array(messages, pa.string()),
        cleaned.source.filter(chosen),
        cleaned.target.filter(chosen),
    ]
    return pa.table(columns, schema=REJECTED_SCHEMA)


def describe(unit: Unit, row: dict) -> str:
    """Return a rejected row as people look it up."""
    excerpt = " | ".join(f"{row[side]!r:.{EXCERPT}}" for side in ("source", "target"))
    return f"{unit.path}, {place(unit, row['row'])}: {row['reason']}: {row['message']}: {excerpt}"


def place(unit: Unit, row: int) -> str:
    """Return where a row stands, as people count: lines from 1, rows of tables from 0."""
    if unit.format == "parquet":
        return f"row {row}"
    return f"record {row + 1}" if unit.format == "csv" else f"line {row + 1 + (unit.format == 'tsv')}"
