"""The run job: tokenize, train, predict and evaluate from one configuration."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.cluster import connected_once
from tfray.config import EvaluateJob, Paths, PredictJob, RunJob, TokenizeJob, TrainJob, as_list, require
from tfray.corpus.columns import SettingNames, check_columns, choose_columns, choose_source
from tfray.corpus.read import with_schemas
from tfray.errors import InputError
from tfray.evaluation.evaluate import evaluate, reference_lines
from tfray.inference.columns import added_fields, input_schema, output_schema
from tfray.inference.planning import check_formats
from tfray.inference.predict import predict
from tfray.model.architecture import resolve
from tfray.tokens.output import TEST_SCHEMA, TEST_TEXT
from tfray.tokens.tokenize import tokenize
from tfray.training.train import train
from tfray.units.files import InputFile, find_files
from tfray.units.lines import count_lines

NAMES = SettingNames("test", "test_target", "corpus.source_column", "corpus.target_column")


class Tests(NamedTuple):
    """What is predicted in the end, and how it is compared with references."""

    files: Paths
    source_column: str | None
    reference_column: str | None
    label_names: dict[str, str]


def run(job: RunJob) -> dict:
    """Return the scores on the test files; every stage that is done and unchanged is skipped."""
    out = storage.absolute(job.out)
    check_stages(job)
    tests = find_tests(job)  # what is wrong with them should not wait for the training to end
    shared = {"overwrite": job.overwrite, "cluster": job.cluster}
    # Another model follows from a change that was allowed: what the earlier one predicted is replaced then.
    mode = "overwrite" if job.overwrite or job.allow_change else "resume"
    with connected_once():
        tokens = tokenize(TokenizeJob(out=storage.join(out, "tokens"), corpus=job.corpus, tokens=job.tokens, **shared))
        share = job.corpus.test_share
        require(
            bool(job.test) or tokens.has_split("test"), "corpus.test_share", share, "holds out no row; name test files"
        )
        model = train(
            TrainJob(
                tokens_folder=tokens.folder,
                out=storage.join(out, "training"),
                model=job.model,
                batches=job.batches,
                training=job.training,
                allow_change=job.allow_change,
                **shared,
            )
        )
        predictions = predict(
            PredictJob(
                model_folder=model,
                input=tests.files,
                source_column=tests.source_column,
                out=storage.join(out, "predictions"),
                generation=job.generation,
                inference=job.inference,
                mode=mode,
                cluster=job.cluster,
            )
        )
    return evaluate(
        EvaluateJob(
            predictions=predictions,
            reference_column=tests.reference_column,
            reference_file=job.test_target,
            label_names=tests.label_names,
        )
    )


def check_stages(job: RunJob) -> None:
    """Raise InputError for settings that a later stage refuses whatever the earlier ones find."""
    resolve(job.model, job.tokens.vocab_size, 1)
    scores = job.inference.token_scores
    require(not scores, "inference.token_scores", scores, "is for task score, which `tfray run` has not; leave it out")
    if not (as_list(job.corpus.valid) or job.corpus.valid_share):
        for name, unused in {"best_metric": "loss", "patience": 0, "keep_best_checkpoints": 0}.items():
            value = getattr(job.training, name)
            require(
                value == unused,
                f"training.{name}",
                value,
                f"goes by validations; name corpus.valid or corpus.valid_share, or leave it {unused}",
            )
    if job.inference.quality_data:
        find_files(as_list(job.inference.quality_data), setting="inference.quality_data")


def find_tests(job: RunJob) -> Tests:
    """Return the test files and their columns; raises InputError where they cannot be predicted and compared."""
    if not job.test:
        held_out = storage.join(storage.absolute(job.out), f"tokens/{TEST_TEXT}")
        check_added(job, job.corpus.task, TEST_SCHEMA)
        return Tests(held_out, "source", "target", {})
    files, corpus = with_schemas(find_files(as_list(job.test), setting="test")), job.corpus
    check_formats(files, "test")
    if all(file.is_empty for file in files):
        raise InputError(f"test={job.test!r} holds no row; fill the file, or name others")
    # Plain text has one column, whatever those of the corpus are called.
    source = None if files[0].format == "text" else corpus.source_column
    check_columns_of(job, files, source)
    if job.test_target:
        check_references(job.test, files, job.test_target)
    return Tests(job.test, source, None if job.test_target else corpus.target_column, corpus.label_names)


def check_columns_of(job: RunJob, files: list[InputFile], source: str | None) -> None:
    """Raise InputError where a test file lacks a column that it needs, or has one that predict adds."""
    task = job.corpus.task
    if job.test_target:
        source = choose_source(files, source, NAMES.source)
        needed = text = {source}
    else:
        columns = choose_columns(files, source, job.corpus.target_column, task, NAMES)
        source, task, needed, text = columns.source, columns.task, columns.needed, columns.text
    for file in files:
        check_columns(file, needed, text)
    check_added(job, task, input_schema(files, {source}, job.inference))


def check_added(job: RunJob, task: str, columns: pa.Schema) -> None:
    """Raise InputError where a column of the tests has the name of one that predict adds."""
    # Of a task that is not known yet, what is added in any case.
    added = added_fields("generate" if task == "translation" else "classify", job.generation, job.inference, width=1)
    output_schema(columns, added, job.inference.prefix)


def check_references(test: Paths, files: list[InputFile], path: str) -> None:
    """Raise InputError where a file of references cannot be read, or has not a line for each row, where those can be
    counted."""
    is_text = files[0].format == "text"
    counts = [count_lines([(file.path, file.compression) for file in files])] if is_text else [f.rows for f in files]
    rows = None if None in counts else sum(filter(None, counts))  # those of Parquet are known
    reference_lines(path, rows, f"{'lines' if is_text else 'rows'} of test={test!r}", setting="test_target")
