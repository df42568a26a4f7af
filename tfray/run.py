"""The run job: tokenize, train, predict and evaluate from one configuration."""

from __future__ import annotations

import logging

from tfray import storage
from tfray.cluster import connected_once
from tfray.config import EvaluateJob, PredictJob, RunJob, TokenizeJob, TrainJob, as_list
from tfray.evaluation.evaluate import evaluate
from tfray.inference.predict import predict
from tfray.tokens.output import TEST_TEXT
from tfray.tokens.tokenize import tokenize
from tfray.training.train import train
from tfray.units.files import find_files

logger = logging.getLogger(__name__)


def run(job: RunJob) -> dict:
    """Return the scores on the test files; every stage that is done and unchanged is skipped."""
    out = storage.absolute(job.out)
    find_files(as_list(job.test), setting="test")  # a missing test file should not wait for the training to end
    if job.test_target:
        find_files([job.test_target], setting="test_target")
    held_out = storage.join(out, f"tokens/{TEST_TEXT}")
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
                input=job.test or held_out,
                source_column=job.corpus.source_column if job.test else "source",
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
            reference_column=(None if job.test_target else job.corpus.target_column) if job.test else "target",
            reference_file=job.test_target,
            label_names=job.corpus.label_names if job.test else {},
        )
    )
