"""What a worker does and notes is the same whether it does it in one go or breaks off on the way."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.alone import Alone, make_job, without_ray
from tests.training.token_folders import make_token_folder
from tfray.checkpoint.state import Progress
from tfray.config import TrainJob
from tfray.report.curves import drop_undone, read_curve
from tfray.tokens.shards import TokenFolder
from tfray.training import worker as worker_file
from tfray.training.log import LogReader
from tfray.training.validation import Finding
from tfray.training.worker import Worker

pytestmark = pytest.mark.usefixtures(without_ray.__name__)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFolder:
    return make_token_folder(tmp_path_factory.mktemp("tokens"), shards=3, pairs=60, valid_pairs=20)


@pytest.mark.parametrize(
    ("batches", "training"),
    [
        (dict(packing=True, max_tokens=256), {}),
        (dict(bpe_dropout=0.1), dict(average_checkpoints=2)),
        (dict(weights={"a": 0.7}, temperature=2.0), dict(r_drop=2.0, ema_decay=0.9)),
        ({}, dict(epochs=50, token_budget=3000)),
        ({}, dict(epochs=50, max_steps=23)),
        ({}, dict(average_checkpoints=2, keep_best_checkpoints=2, validate_every=5)),
        ({}, dict(patience=2, epochs=30, validate_every=3, learning_rate=3e-2, schedule="cosine")),
        ({}, dict(best_metric="bleu", valid_rows=10, validate_every=6, patience=2)),
        ({}, dict(epochs=12, spike_factor=1.2, gradient_clip=0.1, validate_every=1000)),
    ],
    ids=str,
)
def test_a_training_that_breaks_off_anywhere_ends_as_if_nothing_had_happened(
    batches: dict, training: dict, tokens: TokenFolder, tmp_path: Path
):
    in_one_go, in_parts = Alone(), Alone()
    whole = in_one_go.train(make_job(tokens, tmp_path / "whole", batches, training))
    job = make_job(tokens, tmp_path / "parts", batches, training)
    chance = random.Random(str(training))
    for step in sorted(chance.sample(range(1, whole.progress.step), 4)):
        in_parts.train(job, **{chance.choice(["crash_after", "asked_in"]): step})
    parts = in_parts.train(job)
    assert in_parts.steps == in_one_go.steps
    assert outcome(parts) == outcome(whole)
    assert curves(parts.job) == curves(whole.job)
    assert training.get("spike_factor") is None or whole.progress.skipped > 0


def outcome(worker: Worker) -> tuple[Progress, dict[str, Any]]:
    """Return what a training has come to: its place, and its model folders."""
    folders = {}
    for path in sorted(Path(worker.job.out).glob("*/model.safetensors")):
        made = json.loads((path.parent / "config.json").read_text())["training"]
        weights = {name: weight.tolist() for name, weight in load_file(path).items()}
        folders[path.parent.name] = (made, weights)
    assert "last" in folders
    return replace(worker.progress, seconds=0.0), folders


def curves(job: TrainJob) -> list:
    """Return what people see of a validation's values."""
    events = drop_undone(LogReader(job.out).new_events())
    return [read_curve(events, "valid", name) for name in ("loss", "bleu")]


def test_every_step_is_told_of_in_a_line_also_where_training_ends_between_two(tokens: TokenFolder, tmp_path: Path):
    job = make_job(tokens, tmp_path, training=dict(max_steps=24, epochs=50, log_every=10))
    alone = Alone()
    for step in (7, 15, 21):
        alone.train(job, asked_in=step)
    alone.train(job)
    events = LogReader(job.out).new_events()
    assert [event["step"] for event in events if event["event"] == "train"] == [8, 10, 16, 20, 22, 24]


class Slow:
    """Finds scores of weights 15 steps after it began to decode with them; meanwhile the newest weights wait."""

    worker: Worker

    def __init__(self, *_: object) -> None:
        self.jobs: list[tuple[int, dict, int]] = []

    @property
    def awaited(self) -> int | None:
        return self.jobs[-1][0] if self.jobs else None

    def offer(self, step: int, weights: dict) -> None:
        self.jobs[1:] = [(step, weights, step + 15)]

    def poll(self, seconds: float) -> list[Finding]:
        if not self.jobs or (not seconds and self.worker.progress.step < self.jobs[0][2]):
            return []
        step, weights, _ = self.jobs.pop(0)
        return [Finding(step, {"bleu": 100.0 - step}, weights, 0.1)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return our own words; libraries log as well."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("tfray.")]


def test_scores_that_a_crash_has_lost_are_named_at_the_next_start(
    tokens: TokenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(worker_file, "ActorValidator", Slow)
    started = Worker.run
    monkeypatch.setattr(Worker, "run", lambda worker: (setattr(Slow, "worker", worker), started(worker))[1])
    schedule = dict(max_steps=60, epochs=50, validate_every=20, checkpoint_every=6, valid_rows=10, best_metric="bleu")
    job = make_job(tokens, tmp_path, training=schedule)
    alone = Alone(validates_beside=True)
    alone.train(job, crash_after=27)
    assert not said(caplog)
    alone.train(job)
    assert said(caplog) == ["the weights of step 20 get no scores: training broke off before they were there"]
    scores = {event["step"]: event["bleu"] for event in LogReader(job.out).new_events() if "bleu" in event}
    assert scores == {40: 60.0, 60: 40.0}
