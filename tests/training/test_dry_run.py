"""A dry run says what training would do, needs no Ray, and leaves no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfray import storage
from tfray.batches.count import count_epoch
from tfray.batches.feed import PoolLanes, read_feed
from tfray.batches.order import Cursor
from tfray.batches.plan import Shape, plan_pools
from tfray.config import BatchesConfig, ModelConfig, TrainingConfig, TrainJob, WorkerRange
from tfray.errors import CheckpointMismatch, InputError
from tfray.tokens.shards import FORMAT_VERSION, MANIFEST, SUCCESS, TokenFolder
from tfray.training.dry_run import describe_place, report_dry_run, survey_epoch
from tfray.training.train import made_from
from tfray.units.ledger import Ledger, open_ledger


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens: Any) -> TokenFolder:
    random = np.random.default_rng(2)

    def ids() -> list[int]:
        return random.integers(3, 300, random.integers(1, 20)).tolist()

    shards = [(corpus, [(ids(), ids()) for _ in range(40)]) for corpus in "aab"]
    known = {"fingerprint": "f", "made_from": {"tokens": {"max_length": 30}}, "shard_format": FORMAT_VERSION}
    folder = write_tokens(str(tmp_path_factory.mktemp("tokens")), shards, vocab_size=300, **known)
    return replace(folder, manifest=folder.manifest | {"vocab_size": 300})


@pytest.fixture
def job(tokens: TokenFolder, tmp_path: Path) -> TrainJob:
    return TrainJob(
        tokens_folder=tokens.folder,
        out=str(tmp_path / "out"),
        model=ModelConfig(preset="tiny"),
        batches=BatchesConfig(max_tokens=100, pool_examples=50, lanes=4),
        training=TrainingConfig(epochs=3, workers=WorkerRange(min=1, max=4)),
    )


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("packing", "lanes"), [(False, 4), (True, 4), (False, 32)])
def test_the_plan_is_the_one_that_is_trained_on(tokens: TokenFolder, job: TrainJob, packing: bool, lanes: int):
    config = replace(job.batches, packing=packing, lanes=lanes)
    epoch, counted = survey_epoch(tokens, config), count_epoch(tokens, config)
    assert len(epoch.step_tokens) == counted.steps
    assert epoch.pairs == 120 and 0 < epoch.padding < 0.5
    assert all(shape.rows * max(shape.source, shape.target) <= 100 for shape in epoch.shapes)
    stage = PoolLanes(tokens, config, Cursor())
    pools = plan_pools(stage.reader.portions, config, 0)
    rows = [lane for pool in pools for lane in stage.lanes(0, pool, pool is pools[-1])]
    trained = [
        batch
        for step in read_feed(iter(pa.Table.from_batches([row]) for row in rows), [*range(lanes)], Cursor())
        for batch in step.micro_batches
    ]
    assert epoch.shapes == Counter(Shape(*b.source_ids.shape, b.target_ids.shape[1]) for b in trained)
    assert epoch.target_tokens == counted.target_tokens == sum(batch.target_tokens for batch in trained)


def test_the_report_has_the_model_the_plan_the_memory_and_the_places(tokens: TokenFolder, job: TrainJob):
    report = report_dry_run(job, tokens, made_from(job, tokens), steps=77)
    for part in (
        *("embedding", "encoder", "decoder", "norms"),
        *("steps an epoch", "77 (the first end of 3 epochs)", "padding"),
        "1 with 4 lane(s) each or 2 with 2 lane(s) each or 4 with 1 lane(s) each",
        *("weights (fp32)", "moments (fp32)", "activations", "logits of a chunk"),
        *("best/", "checkpoints/", "tensorboard/", job.out, "training would begin"),
    ):
        assert part in report
    assert max(map(len, report.splitlines())) < 200


def test_it_says_whether_it_begins_or_goes_on_or_is_done(tokens: TokenFolder, job: TrainJob):
    made = made_from(job, tokens)
    ledger = open_ledger(job.out, made, overwrite=False)
    before = listing(Path(job.out))
    assert describe_place(job, tokens, made).startswith("training would begin")
    other = replace(job, training=replace(job.training, learning_rate=0.5))
    with pytest.raises(CheckpointMismatch, match=r"learning_rate was 0\.001, is now 0\.5"):
        describe_place(other, tokens, made_from(other, tokens))
    assert "would be removed" in describe_place(replace(other, overwrite=True), tokens, made_from(other, tokens))
    insisting = replace(other, allow_change=["training.learning_rate"])
    assert describe_place(insisting, tokens, made_from(other, tokens)).startswith("training would begin")
    misspelt = replace(other, allow_change=["training.learning_rat"])
    with pytest.raises(InputError, match=r"did you mean training\.learning_rate"):
        describe_place(misspelt, tokens, made_from(other, tokens))
    assert listing(Path(job.out)) == before
    Ledger(job.out, ledger.made_from).finish({})
    assert "is finished and unchanged" in describe_place(job, tokens, made)
    averaging = replace(job, training=replace(job.training, average_checkpoints=2))
    assert "only average/ would be written" in describe_place(averaging, tokens, made_from(averaging, tokens))
    Ledger(job.out, ledger.made_from).finish({"average_checkpoints": 2})
    assert "is finished and unchanged" in describe_place(averaging, tokens, made_from(averaging, tokens))


def test_a_folder_of_something_else_is_refused(tokens: TokenFolder, job: TrainJob):
    Path(job.out).mkdir()
    (Path(job.out) / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files of something else"):
        describe_place(job, tokens, made_from(job, tokens))


def test_the_command_writes_nothing_and_starts_no_ray(tokens: TokenFolder, job: TrainJob, tmp_path: Path):
    storage.publish_text(storage.join(tokens.folder, MANIFEST), json.dumps(tokens.manifest))
    storage.publish_bytes(storage.join(tokens.folder, SUCCESS), b"")
    place = tmp_path / "empty"
    place.mkdir()
    before = listing(Path(tokens.folder)), listing(place)
    program = (
        "import sys; from tfray import cli; cli.main(sys.argv[1:]); import ray; assert not ray.is_initialized(); "
        "assert 'ray.train' not in sys.modules"
    )
    settings = ["--tokens_folder", tokens.folder, "--out", str(place / "out"), "--batches.max_tokens", "100"]
    done = subprocess.run(
        [sys.executable, "-c", program, "train", *settings, "--dry-run"],
        capture_output=True, text=True, cwd=place, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training would begin" in done.stdout and "nothing was written" in done.stdout
    assert (listing(Path(tokens.folder)), listing(place)) == before
