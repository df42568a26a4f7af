"""The tokenize job: files -> units -> clean pairs -> token shards and their manifest."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict
from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.cluster import connected
from tfray.config import TokenizeJob, as_list
from tfray.corpus.clean import Cleaned, Rejected, clean_pairs, kind_of
from tfray.corpus.columns import Columns, choose_columns
from tfray.corpus.read import declare_schema, read_unit
from tfray.errors import InputError
from tfray.report.progress import Progress
from tfray.tokens.shards import TOKENIZER, TokenFolder, open_tokens, read_summary, write_shard
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer
from tfray.units.ledger import Ledger, open_ledger
from tfray.units.plan import InputFile, Unit, find_files, plan_units
from tfray.units.stream import stream_units

logger = logging.getLogger(__name__)

UNIT_ROWS = (1024, 65_536)
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


def tokenize(job: TokenizeJob) -> TokenFolder:
    """Return the folder of token shards that a job describes, made now or before."""
    splits = find_splits(job)
    columns = choose_columns(
        [file for files in splits.values() for file in files],
        job.corpus.source_column,
        job.corpus.target_column,
        job.corpus.task,
    )
    made_from = {
        "corpus": asdict(job.corpus),
        "tokens": asdict(job.tokens),
        "inputs": {split: [storage.file_identity(file.path) for file in files] for split, files in splits.items()},
    }
    ledger = open_ledger(job.out, made_from, job.overwrite)
    if ledger.is_finished:
        logger.info("tokens: %s is finished and unchanged", ledger.folder)
        return open_tokens(ledger.folder)
    units = {split: plan_units(files, *UNIT_ROWS) for split, files in splits.items()}
    recipe = make_recipe(job, columns, splits)
    with connected(job.cluster):
        tokenizer = obtain_tokenizer(job, ledger, recipe, units)
        for split in splits:
            tokenize_split(ledger, split, units[split], recipe, tokenizer, job.tokens.max_length)
    return finish(ledger, columns, tokenizer, units)


def find_splits(job: TokenizeJob) -> dict[str, list[InputFile]]:
    """Return the input files of train and valid; raises InputError where there is nothing to read."""
    corpus = job.corpus
    if not as_list(corpus.train):
        raise InputError("corpus.train is empty; name the training files, e.g. --corpus.train data/train.parquet")
    splits = {"train": find_files(as_list(corpus.train), as_list(corpus.train_target))}
    if as_list(corpus.valid):
        splits["valid"] = find_files(as_list(corpus.valid), as_list(corpus.valid_target))
    for split, files in splits.items():
        if not any(file.size for file in files):
            raise InputError(
                f"corpus.{split}: no row in {', '.join(file.path for file in files[:3])}; the corpus is empty"
            )
    return splits


def make_recipe(job: TokenizeJob, columns: Columns, splits: dict[str, list[InputFile]]) -> Recipe:
    """Return how the corpus' rows become pairs."""
    text = {columns.source} if columns.task == "classification" else {columns.source, columns.target}
    declared = declare_schema([file for files in splits.values() for file in files], text)
    schema = pa.schema([declared.field(columns.source), declared.field(columns.target)])
    return Recipe(columns, schema, job.corpus.label_names, job.corpus.max_characters)


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


def obtain_tokenizer(job: TokenizeJob, ledger: Ledger, recipe: Recipe, units: dict[str, list[Unit]]) -> Tokenizer:
    """Return the tokenizer of an earlier start, or one trained on a sample of the stream."""
    path = storage.join(ledger.folder, TOKENIZER)
    if storage.exists(path):
        return Tokenizer.load(path)
    texts, labels = sample(job, recipe, units["train"])
    if not texts:
        raise InputError(f"every row of the corpus was dropped: {describe_reasons(recipe, units['train'][0])}")
    tokenizer = train_tokenizer(texts, job.tokens, labels)
    storage.publish_text(path, tokenizer.json)
    logger.info("tokenizer: %d entries from %d texts -> %s", tokenizer.vocab_size, len(texts), path)
    return tokenizer


def sample(job: TokenizeJob, recipe: Recipe, units: list[Unit]) -> tuple[list[str], list[str]]:
    """Return texts spread evenly over the units, and all labels of the task."""
    quota = -(-job.tokens.sample_rows // len(units))
    parts: dict[int, list[str]] = {}
    labels: set[str] = set()
    with Progress("reading", sum(unit.rows for unit in units), "row") as progress:
        for result in stream_units(units, SampleUnit, (recipe, quota)):
            parts[result["index"]] = result["texts"]
            labels.update(result["labels"])
            progress.update(result["rows"])
    if len(labels) > MOST_LABELS:
        raise InputError(
            f"{recipe.columns.target!r} has {len(labels)} different labels, more than {MOST_LABELS}; "
            "for free text set --corpus.task translation"
        )
    named = list(dict.fromkeys(recipe.label_names.values())) or sorted(labels)
    texts = [text for index in sorted(parts) for text in parts[index]]
    return texts, named if recipe.columns.task == "classification" else []


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


def describe_reasons(recipe: Recipe, unit: Unit) -> str:
    """Return the reasons for which a unit's rows were dropped, with their counts."""
    counts = Counter(kind_of(row.reason) for row in recipe.clean(unit).rejected)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "there was none"


def tokenize_split(
    ledger: Ledger, split: str, units: list[Unit], recipe: Recipe, tokenizer: Tokenizer, max_length: int
) -> None:
    """Write the shards of a split that are not there yet."""
    remaining = ledger.remaining(units, split)
    folder = storage.join(ledger.folder, split)
    arguments = (folder, recipe, tokenizer.json, max_length)
    with Progress(f"tokenizing {split}", sum(unit.rows for unit in remaining), "row") as progress:
        for result in stream_units(remaining, TokenizeUnit, arguments):
            progress.update(result["rows"])


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


def finish(ledger: Ledger, columns: Columns, tokenizer: Tokenizer, units: dict[str, list[Unit]]) -> TokenFolder:
    """Write the manifest; raises InputError where no pair of a split is left."""
    totals: dict[str, dict] = {}
    shards: dict[str, dict[str, int]] = {}
    for split, planned in units.items():
        summaries = {
            unit.output_name: read_summary(storage.join(ledger.folder, f"{split}/{unit.output_name}"))
            for unit in planned
        }
        totals[split] = add_up(list(summaries.values()))
        shards[split] = {name: summary["pairs"] for name, summary in summaries.items() if summary["pairs"]}
        if not shards[split]:
            reasons = ", ".join(f"{count} {kind}" for kind, count in totals[split]["rejected"].items())
            raise InputError(f"corpus.{split}: every row was dropped ({reasons}); look at the rows, or at the limits")
    ledger.finish(
        {
            "task": columns.task,
            "columns": {"source": columns.source, "target": columns.target},
            "labels": tokenizer.labels,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": storage.fingerprint([ledger.made_from, tokenizer.json]),
            "totals": totals,
            "shards": shards,
        }
    )
    return open_tokens(ledger.folder)


def add_up(summaries: list[dict]) -> dict:
    """Return the totals of units' summaries, with the first examples of each reason."""
    rejected: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for summary in summaries:
        rejected.update(summary["rejected"])
        for kind, rows in summary["examples"].items():
            examples[kind] = (examples.get(kind, []) + rows)[:EXAMPLES_SHOWN]
    sums = {name: sum(summary[name] for summary in summaries) for name in ("pairs", "source_tokens", "target_tokens")}
    return {
        "rows": sums["pairs"] + rejected.total(),
        **sums,
        "rejected": dict(rejected.most_common()),
        "examples": examples,
    }
