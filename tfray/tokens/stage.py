"""The stages of the tokenize job: a unit -> a sample of its texts, and a unit -> its shard."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.corpus.clean import Cleaned, Rejected, clean_pairs, kind_of
from tfray.corpus.columns import Columns
from tfray.corpus.read import read_unit
from tfray.tokens.shards import write_shard
from tfray.tokens.tokenizer import Tokenizer
from tfray.units.plan import Unit

EXAMPLES_SHOWN = 3  # of each reason, per unit and in the report
MOST_LABELS = 1000


class Recipe(NamedTuple):
    """How a row becomes a pair."""

    columns: Columns
    schema: pa.Schema
    label_names: dict[str, str]
    max_characters: int

    def clean(self, unit: Unit) -> Cleaned:
        """Return a unit's usable pairs; labels by their names."""
        source, target, task = self.columns
        text_columns = {source} if task == "classification" else {source, target}
        rows = read_unit(unit, self.schema, text_columns)
        cleaned = clean_pairs(rows, source, target, self.max_characters)
        return name_labels(cleaned, self.label_names) if task == "classification" else cleaned


def name_labels(cleaned: Cleaned, names: dict[str, str]) -> Cleaned:
    """Return pairs whose target is the label's name; values that have none are rejected."""
    if not names:
        return cleaned
    known = Cleaned([], [], list(cleaned.rejected))
    for position, (source, value) in zip(cleaned.positions, cleaned.pairs, strict=True):
        if value in names:
            known.positions.append(position)
            known.pairs.append((source, names[value]))
        else:
            reason = f"unknown_label: {value!r:.40} is not in label_names ({', '.join(names)})"
            known.rejected.append(Rejected(position, reason, f"{source!r:.60}"))
    return known


class SampleUnit:
    """Stage: a unit -> some of its texts and all of its labels."""

    def __init__(self, recipe: Recipe, quota: int) -> None:
        self.recipe, self.quota = recipe, quota

    def __call__(self, unit: Unit) -> dict:
        pairs = self.recipe.clean(unit).pairs
        chosen = [pairs[i * len(pairs) // self.quota] for i in range(self.quota)] if len(pairs) > self.quota else pairs
        labelled = self.recipe.columns.task == "classification"
        return {
            "index": unit.index,
            "rows": unit.rows,
            "texts": [text for pair in chosen for text in (pair[:1] if labelled else pair)],
            "labels": sorted({target for _, target in pairs})[: MOST_LABELS + 1] if labelled else [],
        }


class TokenizeUnit:
    """Stage: a unit -> its shard; the tokenizer is loaded once."""

    def __init__(self, folder: str, recipe: Recipe, tokenizer_json: str, max_length: int) -> None:
        self.folder, self.recipe, self.max_length = folder, recipe, max_length
        self.tokenizer = Tokenizer.from_json(tokenizer_json)

    def __call__(self, unit: Unit) -> dict:
        cleaned = self.recipe.clean(unit)
        sources = self.tokenizer.encode_batch([source for source, _ in cleaned.pairs])
        targets = self.encode_targets([target for _, target in cleaned.pairs], cleaned)
        rejected = list(cleaned.rejected)
        kept: list[int] = []
        for index, reason in enumerate(map(self.unfit, sources, targets)):
            if reason:
                rejected.append(Rejected(cleaned.positions[index], reason, f"{cleaned.pairs[index]!r:.120}"))
            else:
                kept.append(index)
        sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        summary = summarize(unit, sources, targets, rejected)
        path = storage.join(self.folder, unit.output_name)
        write_shard(path, sources, targets, [cleaned.positions[i] for i in kept], summary)
        return {"rows": unit.rows}

    def encode_targets(self, texts: list[str], cleaned: Cleaned) -> list[list[int]]:
        """Return target ids: one label token each, or the text's tokens; none for a new label."""
        if self.recipe.columns.task != "classification":
            return self.tokenizer.encode_batch(texts)
        return [[self.tokenizer.label_ids[text]] if text in self.tokenizer.label_ids else [] for text in texts]

    def unfit(self, source: list[int], target: list[int]) -> str | None:
        """Return why a pair's tokens cannot be used, or None."""
        if not target:
            return "unknown_label: the label does not occur in training"
        longest = max(len(source), len(target)) + 1  # with eos
        if longest > self.max_length:
            return f"too_long: {longest} tokens, more than max_length={self.max_length}"
        return None


def summarize(unit: Unit, sources: list[list[int]], targets: list[list[int]], rejected: list[Rejected]) -> dict:
    """Return a unit's counts and the first rejected rows of each kind."""
    examples: dict[str, list[str]] = {}
    for row in sorted(rejected):
        shown = examples.setdefault(kind_of(row.reason), [])
        if len(shown) < EXAMPLES_SHOWN:
            shown.append(f"{unit.path}, {place(unit, row.position)}: {row.reason}: {row.excerpt}")
    return {
        "pairs": len(sources),
        "source_tokens": sum(map(len, sources)) + len(sources),
        "target_tokens": sum(map(len, targets)) + len(targets),
        "rejected": dict(Counter(kind_of(row.reason) for row in rejected)),
        "examples": examples,
    }


def place(unit: Unit, position: int) -> str:
    """Return where a row stands, as people look it up."""
    if unit.format == "parquet":
        return f"row {position}"
    header = unit.format in ("csv", "tsv")
    after = f" after byte {unit.start}" if unit.start else ""
    return f"line {position + 1 + header}{after}"
