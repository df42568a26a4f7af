"""The tokenize job: files -> units -> clean pairs -> token shards and their manifest."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict

import pyarrow as pa

from tfray import storage
from tfray.cluster import connected
from tfray.config import TokenizeJob, as_list
from tfray.corpus.clean import kind_of
from tfray.corpus.columns import Columns, choose_columns
from tfray.corpus.read import declare_schema
from tfray.errors import InputError
from tfray.report.progress import Progress
from tfray.tokens.shards import TOKENIZER, TokenFolder, open_tokens, read_summary
from tfray.tokens.stage import EXAMPLES_SHOWN, MOST_LABELS, Recipe, SampleUnit, TokenizeUnit
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer
from tfray.units.ledger import Ledger, open_ledger, store_settings
from tfray.units.plan import InputFile, Unit, amount, find_files, plan_units
from tfray.units.stream import stream_units

logger = logging.getLogger(__name__)

UNIT_ROWS = (1024, 65_536)


def tokenize(job: TokenizeJob) -> TokenFolder:
    """Return the folder of token shards that a job describes, made now or before."""
    splits = find_splits(job)
    columns = choose_columns(
        [file for files in splits.values() for file in files],
        job.corpus.source_column,
        job.corpus.target_column,
        job.corpus.task,
    )
    recipe = make_recipe(job, columns, splits)
    made_from = {
        "corpus": asdict(job.corpus),
        "tokens": asdict(job.tokens),
        "inputs": {
            split: [storage.file_identity(path) for file in files for path in file.paths]
            for split, files in splits.items()
        },
    }
    ledger = open_ledger(job.out, made_from, job.overwrite)
    if ledger.is_finished:
        logger.info("tokens: %s is finished and unchanged", ledger.folder)
        return open_tokens(ledger.folder)
    store_settings(ledger.folder, job)
    units = {split: plan_units(files, *UNIT_ROWS) for split, files in splits.items()}
    with connected(job.cluster):
        tokenizer = obtain_tokenizer(job, ledger, recipe, units)
        for split in splits:
            tokenize_split(job, ledger, split, units[split], recipe, tokenizer)
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
    files = [file for of_split in splits.values() for file in of_split]
    declared = declare_schema(files, text, needed={columns.source, columns.target})
    schema = pa.schema([declared.field(columns.source), declared.field(columns.target)])
    return Recipe(columns, schema, job.corpus.label_names, job.corpus.max_characters)


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
    with Progress(*amount("reading", units)) as progress:
        for result in stream_units(units, SampleUnit, (recipe, quota), job.cluster):
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


def describe_reasons(recipe: Recipe, unit: Unit) -> str:
    """Return the reasons for which a unit's rows were dropped, with their counts."""
    counts = Counter(kind_of(row.reason) for row in recipe.clean(unit).rejected)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "there was none"


def tokenize_split(
    job: TokenizeJob, ledger: Ledger, split: str, units: list[Unit], recipe: Recipe, tokenizer: Tokenizer
) -> None:
    """Write the shards of a split that are not there yet."""
    remaining = ledger.remaining(units, split)
    folder = storage.join(ledger.folder, split)
    arguments = (folder, recipe, tokenizer.json, job.tokens.max_length)
    with Progress(*amount(f"tokenizing {split}", remaining)) as progress:
        for result in stream_units(remaining, TokenizeUnit, arguments, job.cluster):
            progress.update(result["rows"])


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
