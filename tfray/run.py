"""The run job: tokenize, train, predict and evaluate from one configuration."""

from __future__ import annotations

import logging
from typing import NamedTuple

from tfray import storage
from tfray.cluster import connected_once
from tfray.config import EvaluateJob, Paths, PredictJob, RunJob, TokenizeJob, TrainJob, as_list
from tfray.evaluation.evaluate import evaluate
from tfray.inference.predict import predict
from tfray.tokens.output import TEST_TEXT
from tfray.tokens.tokenize import tokenize
from tfray.training.train import train
from tfray.units.files import find_files

logger = logging.getLogger(__name__)


class Tests(NamedTuple):
    """What is predicted in the end, and how it is compared with references."""

    files: Paths
    source_column: str | None
    reference_column: str | None
    label_names: dict[str, str]


def run(job: RunJob) -> dict:
    """Return the scores on the test files; every stage that is done and unchanged is skipped."""
    out = storage.absolute(job.out)
    tests = find_tests(job)  # a missing test file should not wait for the training to end
    shared = {"overwrite": job.overwrite, "cluster": job.cluster}
    # Another model follows from a change that was allowed: what the earlier one predicted is replaced then.
    mode = "overwrite" if job.overwrite or job.allow_change else "resume"
    with connected_once():
        tokens = tokenize(TokenizeJob(out=storage.join(out, "tokens"), corpus=job.corpus, tokens=job.tokens, **shared))
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


def find_tests(job: RunJob) -> Tests:
    """Return the test files with the columns that they have; raises InputError where one is missing."""
    if not job.test:
        held_out = storage.join(storage.absolute(job.out), f"tokens/{TEST_TEXT}")
        return Tests(held_out, "source", "target", {})
    files, corpus = find_files(as_list(job.test), setting="test"), job.corpus
    if job.test_target:
        find_files([job.test_target], setting="test_target")
    # Plain text has one column, whatever those of the corpus are called.
    source = None if files[0].format == "text" else corpus.source_column
    return Tests(job.test, source, None if job.test_target else corpus.target_column, corpus.label_names)
