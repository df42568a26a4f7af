"""The tokenize job: files -> units -> clean pairs -> token shards and their manifest."""

from __future__ import annotations

import logging
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from tfray import storage
from tfray.cluster import connected
from tfray.config import ClusterConfig, CorpusConfig, TokenizeJob, as_list
from tfray.config.rules import results_follow_from
from tfray.corpus.columns import Columns
from tfray.errors import InputError
from tfray.report.progress import Intake
from tfray.tokens.adopt import adopt_tokenizer
from tfray.tokens.manifest import WORK, finish, why_dropped
from tfray.tokens.recipe import Corpus, Recipe, find_corpora, make_recipe
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.tokens.stage import Assignment, TokenizeUnit
from tfray.tokens.survey import MOST_LABELS, SAMPLE_SCHEMA, Questions, SurveyUnit, read_notes
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer, train_tokenizer
from tfray.tokens.verdicts import Verdicts, count_partitions, judge
from tfray.units.ledger import (
    Found,
    Ledger,
    discard,
    find_ledger,
    open_ledger,
    read_records,
    store_settings,
    unrecorded,
)
from tfray.units.lock import Lock
from tfray.units.place import check_apart
from tfray.units.plan import Unit, plan_units
from tfray.units.stored import write_plan
from tfray.units.stream import stream

logger = logging.getLogger(__name__)


UNIT_ROWS = (1024, 65_536)
BYTES_PER_TOKEN = 4.0  # about, for cutting units
SAMPLE_MARGIN = 1.5  # the rows of text files are guessed, and some are dropped


def tokenize(job: TokenizeJob) -> TokenFolder:
    """Return the folder of token shards that a job describes, made now or before.

    Raises TooManyErrors at the end where more rows were lost by errors than may be.
    """
    corpora = find_corpora(job.corpus)
    check_apart(patterns_of(job.corpus), [], job.out, "corpus")
    storage.check_writable(job.out)
    with Lock(job.out) as lock:
        return carry_out(job, corpora, lock)


def patterns_of(corpus: CorpusConfig) -> list[str]:
    """Return the files of a corpus as they are named: paths, globs and folders."""
    named = [corpus.train, corpus.train_target, corpus.valid, corpus.valid_target, corpus.test]
    named += [files for part in corpus.parts for files in (part.files, part.target_files)]
    return [pattern for files in named for pattern in as_list(files)]


def carry_out(job: TokenizeJob, corpora: list[Corpus], lock: Lock) -> TokenFolder:
    """Return the folder of token shards, made now or before, by a job that has the place for itself."""
    made = made_from(job, corpora)
    ledger, found = find_ledger(job.out, made, job.overwrite)
    # Before the place is claimed, or cleared: parallel text of unequal sides is refused here.
    units = [] if found is Found.THE_SAME and ledger.is_finished else plan_corpora(job, corpora)
    with storage.writing(job.out):
        ledger = open_ledger(job.out, made, job.overwrite)
    if ledger.is_finished:
        logger.info("tokens: %s is finished and unchanged", ledger.folder)
        return open_tokens(ledger.folder)
    for lost in (lost for corpus in corpora for lost in corpus.lost):
        logger.warning("%s: %s is left out: %s", lost.corpus, lost.path, lost.reason)
    recipe = make_recipe(job.corpus, corpora)
    with storage.writing(job.out):
        store_settings(ledger.folder, job)
        ledger.begin(plan=write_plan(ledger.folder, ledger.made_from, units))
    if remaining := ledger.remaining(units):
        with connected(job.cluster):
            try:
                tokenizer, verdicts = survey(job, ledger, recipe, units, lock)
            except InputError:  # other settings may have the place, where these have made nothing
                lock.check()  # unless they have it already
                if len(remaining) == len(units):
                    discard(ledger.folder)
                raise
            write_shards(job, ledger, recipe, units, tokenizer, verdicts, lock)
    lock.check()
    return finish(job, ledger, corpora, units)


def made_from(job: TokenizeJob, corpora: list[Corpus]) -> dict[str, object]:
    """Return everything that the shards follow from."""
    return {
        "corpus": results_follow_from(job.corpus),
        "tokens": results_follow_from(job.tokens),
        "tokenizer": storage.fingerprint(tokenizer_identity(job.tokens.tokenizer)),
        "inputs": {corpus.name: identify_files(corpus) for corpus in corpora},
    }


def identify_files(corpus: Corpus) -> dict[str, list[object]]:
    """Return size and time of change of each file, by its path; those of lost files, too: mended, they count."""
    paths = [path for file in corpus.files for path in file.paths] + [file.path for file in corpus.lost]
    return {path: storage.file_identity(path)[1:] for path in paths}


def tokenizer_identity(path: str | None) -> list[object]:
    """Return what tells an existing tokenizer apart from another; a folder by what is in it."""
    if path is None:
        return []
    return [storage.file_identity(file) for file in storage.expand(path, "tokens.tokenizer")]


def plan_corpora(job: TokenizeJob, corpora: list[Corpus]) -> list[Unit]:
    """Return the units of all corpora, numbered through; none is much larger than a shard."""
    units: list[Unit] = []
    for corpus in corpora:
        rows = sum(file.rows or 0 for file in corpus.files)
        size = sum(file.bytes for file in corpus.files if file.rows)
        tokens_per_row = max(1.0, size / max(rows, 1) / BYTES_PER_TOKEN)
        largest = max(1, min(UNIT_ROWS[1], int(job.tokens.shard_tokens / tokens_per_row)))
        smallest = min(UNIT_ROWS[0], largest)
        units += plan_units(corpus.files, smallest, largest, corpus=corpus.name, first_index=len(units))
    return units


def survey(
    job: TokenizeJob, ledger: Ledger, recipe: Recipe, units: list[Unit], lock: Lock
) -> tuple[Tokenizer, Verdicts]:
    """Return the tokenizer and the verdicts, from one pass over the units that have something to tell.

    The pass is repeated with a larger share only where the sample turns out to be too small, because the
    rows of text files had to be guessed.
    """
    path = storage.join(ledger.folder, TOKENIZER)
    tokenizer = known_tokenizer(job, recipe, path, lock)
    wanted = job.tokens.sample_rows
    training = [unit for unit in units if recipe.splits[unit.corpus] == "train"]
    rows = max(1, sum(unit.rows for unit in training))
    share = 0.0 if job.tokens.tokenizer else min(1.0, SAMPLE_MARGIN * wanted / rows)
    clean = job.corpus.clean
    partitions = count_partitions(rows) if clean.duplicates != "off" or clean.near_duplicates else 0
    while True:
        folder = storage.join(ledger.folder, f"{WORK}/{round(share * 1000):04d}")
        surveyed = units_to_survey(job, recipe, units, tokenizer is None or bool(partitions))
        questions = Questions(folder, share, partitions, lock.ticket)
        records = carry_out_survey(surveyed, recipe, questions, job.cluster, lock)
        verdicts = judge_training(job, folder, surveyed, records, recipe, partitions)
        if tokenizer is not None:
            return tokenizer, verdicts
        labels = label_names(job, recipe, records)
        if job.tokens.tokenizer:
            return publish_tokenizer(path, adopt_tokenizer(job.tokens.tokenizer, labels), lock), verdicts
        texts = draw_sample(folder, wanted, verdicts, recipe)
        if not texts and share == 1.0:
            raise nothing_left(recipe, records)
        if len(texts) >= wanted * (1 if recipe.is_classification else 2) or share == 1.0:  # of a pair, two texts
            return publish_tokenizer(path, train_tokenizer(texts, job.tokens, labels), lock), verdicts
        share = min(1.0, 4 * share)


def known_tokenizer(job: TokenizeJob, recipe: Recipe, path: str, lock: Lock) -> Tokenizer | None:
    """Return the tokenizer that an earlier start has made, or one that is adopted as it is: without labels; else None,
    for it follows from the survey."""
    if storage.exists(path):
        return Tokenizer.load(path)
    if job.tokens.tokenizer and not recipe.is_classification:
        return publish_tokenizer(path, adopt_tokenizer(job.tokens.tokenizer, []), lock)
    return None


def nothing_left(recipe: Recipe, records: list[dict]) -> InputError:
    """Return the error for a corpus of which no training row is left."""
    columns = " and ".join(map(repr, first_columns(recipe)[:2]))
    return InputError(
        f"corpus.train: every row was dropped ({why_dropped(records)}); look at the columns {columns}, choose others "
        "by corpus.source_column and corpus.target_column, or change the limits of corpus.clean"
    )


def units_to_survey(job: TokenizeJob, recipe: Recipe, units: list[Unit], training: bool) -> list[Unit]:
    """Return the units of which something must be known beforehand."""
    corpus = job.corpus
    training = training or (corpus.held_out != "off" and bool(corpus.valid_share or corpus.test_share))
    splits = {"train"} if training else set()
    if corpus.held_out != "off":
        splits |= {"valid", "test"}
    return [unit for unit in units if recipe.splits[unit.corpus] in splits]


def carry_out_survey(
    units: list[Unit], recipe: Recipe, questions: Questions, cluster: ClusterConfig, lock: Lock
) -> list[dict]:
    """Survey the units that are not surveyed yet, and return the records of all."""
    remaining = unrecorded(questions.folder, units)
    if not remaining:
        return read_records(questions.folder, units)
    with intake("reading", units, remaining) as progress:
        for done in stream(remaining, SurveyUnit, (recipe, questions), cluster):
            progress.take(done["bytes"], rows=done["rows"])
            lock.check()
    return read_records(questions.folder, units)


def intake(label: str, units: list[Unit], remaining: list[Unit]) -> Intake:
    """Return a display of how much of the input is read; what an earlier start read is said beside it."""
    before = len(units) - len(remaining)
    label = f"{label} ({before:,} of {len(units):,} units were done before)" if before else label
    return Intake(label, sum(unit.bytes for unit in remaining))


def judge_training(
    job: TokenizeJob, folder: str, units: list[Unit], records: list[dict], recipe: Recipe, partitions: int
) -> Verdicts:
    """Return the verdicts; only training rows are ever duplicates."""
    pairs = [pair for pair in zip(units, records, strict=True) if recipe.splits[pair[0].corpus] == "train"]
    training, rows = [unit for unit, _ in pairs], [places(unit, record) for unit, record in pairs]
    held_out_targets = job.corpus.held_out == "either" and not recipe.is_classification
    return judge(folder, training, rows, partitions, held_out_targets, job.cluster)


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


def label_names(job: TokenizeJob, recipe: Recipe, records: list[dict]) -> list[str]:
    """Return the labels of a classification task, in their order; none for other tasks."""
    if not recipe.is_classification:
        return []
    found = {label for record in records for label in record["labels"]}
    if len(found) > MOST_LABELS:
        raise InputError(
            f"{first_columns(recipe).target!r} has {len(found)} different labels, more than {MOST_LABELS}; "
            "for free text set --corpus.task translation"
        )
    return list(dict.fromkeys(job.corpus.label_names.values())) or sorted(found)


def first_columns(recipe: Recipe) -> Columns:
    """Return the columns of the first corpus."""
    return next(iter(recipe.columns.values()))


def publish_tokenizer(path: str, tokenizer: Tokenizer, lock: Lock) -> Tokenizer:
    """Store the tokenizer; a later start of the job takes it from there."""
    lock.check()  # to learn it takes a while, and another run's shards follow from another one
    storage.publish_text(path, tokenizer.json)
    logger.info("tokenizer: %d entries -> %s", tokenizer.vocab_size, path)
    return tokenizer


def write_shards(
    job: TokenizeJob,
    ledger: Ledger,
    recipe: Recipe,
    units: list[Unit],
    tokenizer: Tokenizer,
    verdicts: Verdicts,
    lock: Lock,
) -> None:
    """Write the shards of the units that are not done yet."""
    remaining = ledger.remaining(units)
    assignment = Assignment(ledger.folder, recipe, job.tokens, tokenizer.json, lock.ticket)
    with intake("tokenizing", units, remaining) as progress:
        for done in stream(remaining, TokenizeUnit, (assignment,), job.cluster, shared=verdicts):
            progress.take(done["bytes"], rows=done["rows"], tokens=done["tokens"])
            lock.check()
