"""The demo: dates as people write them, in four languages, to ISO 8601, the whole way in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq

from tfray.config import (
    BatchesConfig,
    CorpusConfig,
    DemoJob,
    GenerationConfig,
    ModelConfig,
    RunJob,
    TokensConfig,
    TrainingConfig,
)
from tfray.demo.dates import write_dates
from tfray.errors import InputError
from tfray.report.tables import format_table
from tfray.run import run
from tfray.storage import absolute, check_writable, is_remote, writing
from tfray.training.display import CURVES

EXAMPLES_A_LANGUAGE = 3


def demo(job: DemoJob) -> str:
    """Return what the demo shows at its end: examples, the exact-match score and where things are."""
    begun = time.monotonic()
    if is_remote(job.out):
        raise InputError(f"out={job.out!r} is an object store; the demo writes to a local folder: leave --out out")
    out = Path(absolute(job.out))
    check_writable(str(out))
    data = out / "data"
    if not (data / "train.parquet").exists():  # the last that is written
        with writing(str(out)):
            write_dates(data)
    scores = run(date_job(job, data))
    return format_result(out, scores, time.monotonic() - begun)


def date_job(job: DemoJob, data: Path) -> RunJob:
    """Return the whole job on the dates: a tiny model that two cores train in minutes."""
    return RunJob(
        out=job.out,
        overwrite=job.overwrite,
        test=str(data / "test.parquet"),
        corpus=CorpusConfig(train=str(data / "train.parquet"), valid=str(data / "valid.parquet")),
        tokens=TokensConfig(vocab_size=400, max_length=64),
        model=ModelConfig(preset="tiny", dropout=0.0),
        batches=BatchesConfig(max_tokens=2048, lanes=2),
        training=TrainingConfig(
            workers=2,
            epochs=8,
            learning_rate=2e-3,
            warmup_steps=100,
            schedule="cosine",
            label_smoothing=0.0,
            validate_every=200,
            checkpoint_every=200,
            log_every=50,
        ),
        generation=GenerationConfig(beam_size=1),
        cluster=job.cluster,
    )


def format_result(out: Path, scores: dict, seconds: float) -> str:
    """Return the demo's examples, score and paths for people."""
    table = pq.read_table(out / "predictions", columns=["language", "source", "target", "prediction"])
    rows = table.to_pylist()
    shown = [
        [row["language"], row["source"], row["prediction"], verdict(row)]
        for language in sorted({row["language"] for row in rows})
        for row in [row for row in rows if row["language"] == language][:EXAMPLES_A_LANGUAGE]
    ]
    return "\n".join(
        [
            format_table(["language", "as people write it", "prediction", "right?"], shown),
            "",
            f"exact match on {scores['rows']:,} dates that training never saw: {scores['exact_match']:.1%}",
            f"predictions: {out / 'predictions'}",
            f"loss curve:  {out / 'training' / CURVES}",
            f"time:        {seconds:.0f} s",
        ]
    )


def verdict(row: dict) -> str:
    """Return whether a prediction is right, and else what would have been."""
    return "yes" if row["prediction"] == row["target"] else f"no, {row['target']}"
