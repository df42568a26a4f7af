"""What is learnt of a whole corpus before its rows become tokens: the tokenizer, and the verdicts on duplicates."""

from __future__ import annotations

import logging
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from tfray import storage
from tfray.config import TokenizeJob
from tfray.errors import InputError
from tfray.report.progress import Intake
from tfray.tokens.adopt import adopt_tokenizer
from tfray.tokens.manifest import WORK, why_dropped
from tfray.tokens.recipe import Recipe
from tfray.tokens.survey import MOST_LABELS, SAMPLE_SCHEMA, Questions, SurveyUnit, read_notes
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer, train_tokenizer
from tfray.tokens.verdicts import Verdicts, count_partitions, judge
from tfray.units.ledger import read_records, unrecorded
from tfray.units.lock import Lock
from tfray.units.plan import Unit
from tfray.units.stream import stream

logger = logging.getLogger(__name__)

SAMPLE_MARGIN = 1.5  # the rows of text files are guessed, and some are dropped


class Learning:
    """Learns from one pass over the units that have something to tell; what earlier starts have found is not sought
    again."""

    def __init__(self, job: TokenizeJob, recipe: Recipe, units: list[Unit], folder: str, lock: Lock) -> None:
        self.job, self.recipe, self.units, self.folder, self.lock = job, recipe, units, folder, lock

    def outcome(self) -> tuple[Tokenizer, Verdicts]:
        """Return the tokenizer and the verdicts.

        The pass is repeated with a larger share only where the sample turns out to be too small, because the
        rows of text files had to be guessed.
        """
        job, recipe = self.job, self.recipe
        tokenizer = self.known_tokenizer()
        wanted = job.tokens.sample_rows
        rows = max(1, sum(unit.rows for unit in self.units if recipe.splits[unit.corpus] == "train"))
        share = 0.0 if job.tokens.tokenizer else min(1.0, SAMPLE_MARGIN * wanted / rows)
        clean = job.corpus.clean
        partitions = count_partitions(rows) if clean.duplicates != "off" or clean.near_duplicates else 0
        surveyed = self.units_to_survey(with_training=tokenizer is None or bool(partitions))
        while True:
            folder = storage.join(self.folder, f"{WORK}/{round(share * 1000):04d}")
            records = self.survey(surveyed, Questions(folder, share, partitions, self.lock.ticket))
            verdicts = self.judge_training(folder, surveyed, records, partitions)
            if tokenizer is not None:
                return tokenizer, verdicts
            labels = self.label_names(records)
            if job.tokens.tokenizer:
                return self.publish(adopt_tokenizer(job.tokens.tokenizer, labels)), verdicts
            texts = draw_sample(folder, wanted, verdicts, recipe)
            if not texts and share == 1.0:
                raise nothing_left(recipe, records)
            if len(texts) >= wanted * (1 if recipe.is_classification else 2) or share == 1.0:  # of a pair, two texts
                return self.publish(train_tokenizer(texts, job.tokens, labels)), verdicts
            share = min(1.0, 4 * share)

    def known_tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer that an earlier start has made, or one that is adopted as it is: without labels; else
        None, for it follows from the survey."""
        path = storage.join(self.folder, TOKENIZER)
        if storage.exists(path):
            return Tokenizer.load(path)
        if self.job.tokens.tokenizer and not self.recipe.is_classification:
            return self.publish(adopt_tokenizer(self.job.tokens.tokenizer, []))
        return None

    def publish(self, tokenizer: Tokenizer) -> Tokenizer:
        """Store the tokenizer; a later start of the job takes it from there."""
        self.lock.check()  # to learn it takes a while, and another run's shards follow from another one
        path = storage.join(self.folder, TOKENIZER)
        storage.publish_text(path, tokenizer.json)
        logger.info("tokenizer: %d entries -> %s", tokenizer.vocab_size, path)
        return tokenizer

    def units_to_survey(self, with_training: bool) -> list[Unit]:
        """Return the units of which something must be known beforehand."""
        corpus = self.job.corpus
        splits: set[str] = set()
        if with_training or (corpus.held_out != "off" and (corpus.valid_share or corpus.test_share)):
            splits.add("train")
        if corpus.held_out != "off":
            splits |= {"valid", "test"}
        return [unit for unit in self.units if self.recipe.splits[unit.corpus] in splits]

    def survey(self, units: list[Unit], questions: Questions) -> list[dict]:
        """Survey the units that are not surveyed yet, and return the records of all."""
        remaining = unrecorded(questions.folder, units)
        if not remaining:
            return read_records(questions.folder, units)
        with intake("reading", units, remaining) as progress:
            for done in stream(remaining, SurveyUnit, (self.recipe, questions), self.job.cluster):
                progress.take(done["bytes"], rows=done["rows"])
                self.lock.check()
        return read_records(questions.folder, units)

    def judge_training(self, folder: str, units: list[Unit], records: list[dict], partitions: int) -> Verdicts:
        """Return the verdicts; only training rows are ever duplicates."""
        recipe = self.recipe
        pairs = [pair for pair in zip(units, records, strict=True) if recipe.splits[pair[0].corpus] == "train"]
        training, rows = [unit for unit, _ in pairs], [places(unit, record) for unit, record in pairs]
        held_out_targets = self.job.corpus.held_out == "either" and not recipe.is_classification
        return judge(folder, training, rows, partitions, held_out_targets, self.job.cluster)

    def label_names(self, records: list[dict]) -> list[str]:
        """Return the labels of a classification task, in their order; none for other tasks."""
        if not self.recipe.is_classification:
            return []
        found = {label for record in records for label in record["labels"]}
        if len(found) > MOST_LABELS:
            raise InputError(
                f"{self.recipe.first_columns.target!r} has {len(found)} different labels, more than {MOST_LABELS}; "
                "for free text set --corpus.task translation"
            )
        return list(dict.fromkeys(self.job.corpus.label_names.values())) or sorted(found)


def intake(label: str, units: list[Unit], remaining: list[Unit]) -> Intake:
    """Return a display of how much of the input is read; what an earlier start read is said beside it."""
    before = len(units) - len(remaining)
    label = f"{label} ({before:,} of {len(units):,} units were done before)" if before else label
    return Intake(label, sum(unit.bytes for unit in remaining))


def places(unit: Unit, record: dict) -> int:
    """Return how many rows a unit may have by their numbers: those that were read, and damaged ones among them."""
    return max(unit.rows, record["rows"])


def draw_sample(folder: str, wanted: int, verdicts: Verdicts, recipe: Recipe) -> list[str]:
    """Return the texts of the training rows with the smallest hashes, each once, in the order of these.

    They follow from the set of the corpus' rows alone: not from their order, files, or the workers.
    """
    notes = read_notes(folder, "sample", SAMPLE_SCHEMA)
    notes = notes.filter(pc.invert(verdicts.are_held_out(notes["source"], notes["target"])))
    notes = notes.take(pc.sort_indices(notes, [(name, "ascending") for name in SAMPLE_SCHEMA.names]))
    distinct = distinct_rows(notes["priority"].to_pylist(), wanted)
    chosen = notes.take(pa.array(distinct, pa.int64()))
    if recipe.is_classification:
        return chosen["source"].to_pylist()
    pairs = zip(chosen["source"].to_pylist(), chosen["target"].to_pylist(), strict=True)
    return [text for pair in pairs for text in pair]


def distinct_rows(ascending: list[int], wanted: int) -> list[int]:
    """Return the places of the first `wanted` different values."""
    changes = (i for i, value in enumerate(ascending) if i == 0 or value != ascending[i - 1])
    return list(islice(changes, wanted))


def nothing_left(recipe: Recipe, records: list[dict]) -> InputError:
    """Return the error for a corpus of which no training row is left."""
    columns = " and ".join(map(repr, recipe.first_columns[:2]))
    return InputError(
        f"corpus.train: every row was dropped ({why_dropped(records)}); look at the columns {columns}, choose others "
        "by corpus.source_column and corpus.target_column, or change the limits of corpus.clean"
    )
