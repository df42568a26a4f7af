"""The tokenize job: files -> units -> clean pairs -> token shards and their manifest."""

from __future__ import annotations

import logging

from tfray import storage
from tfray.cluster import connected
from tfray.config import CorpusConfig, TokenizeJob, as_list
from tfray.config.rules import results_follow_from
from tfray.errors import InputError
from tfray.tokens.learning import Learning, intake
from tfray.tokens.manifest import finish
from tfray.tokens.recipe import Corpus, Recipe, find_corpora, make_recipe
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.tokens.stage import Assignment, TokenizeUnit
from tfray.tokens.tokenizer import Tokenizer
from tfray.tokens.verdicts import Verdicts
from tfray.units.ledger import Found, Ledger, discard, find_ledger, open_ledger, store_settings
from tfray.units.lock import Lock
from tfray.units.place import check_apart
from tfray.units.plan import Unit, plan_units
from tfray.units.stored import write_plan
from tfray.units.stream import stream

logger = logging.getLogger(__name__)


UNIT_ROWS = (1024, 65_536)
BYTES_PER_TOKEN = 4.0  # about, for cutting units


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
                tokenizer, verdicts = Learning(job, recipe, units, ledger.folder, lock).outcome()
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
