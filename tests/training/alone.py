"""A worker in the test's own process: no Ray, its feed is read where it is planned, and it dies where the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from tfray.batches.count import count_epoch
from tfray.batches.feed import PoolLanes, count_pools
from tfray.batches.order import Cursor
from tfray.batches.pool import mix_shards
from tfray.config import BatchesConfig, ModelConfig, TrainingConfig, TrainJob
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.training import worker as worker_file
from tfray.training.assignment import Assignment
from tfray.training.flops import Peak
from tfray.training.step import StepMetrics
from tfray.training.stop import WISHES, Wish
from tfray.training.worker import Worker

SIZES = dict(preset="tiny", d_model=32, num_heads=2, d_ff=48, encoder_layers=1, decoder_layers=1)
BATCHES = dict(max_tokens=200, lanes=2, pool_examples=100)
TRAINING = dict(
    epochs=2, warmup_steps=5, learning_rate=3e-3, validate_every=10, checkpoint_every=8, valid_rows=0, log_every=4,
    precision="fp32", cpus_per_worker=1.0,
)  # fmt: skip


class Crash(Exception):
    """The process is dead."""


class Alone:
    """Trains, a process after the other."""

    def __init__(self, validates_beside: bool = False) -> None:
        self.validates_beside = validates_beside
        self.steps: dict[int, StepMetrics] = {}
        """What was done last in each step, from 1."""

    def train(self, job: TrainJob, crash_after: int | None = None, asked_in: int | None = None) -> Worker:
        """Train to the end, or until the worker dies after a step, or ends after the one next to that in which it is
        asked to."""
        epoch = count_epoch(open_tokens(job.tokens_folder), job.batches)
        ticket: Any = SimpleNamespace(check=lambda: None)
        Path(job.out).mkdir(parents=True, exist_ok=True)
        WISHES.strongest = Wish.NOTHING
        worker = Worker(Assignment(job, epoch, self.validates_beside, None, ticket, ticket), 0, 1, 1)
        take_step = worker.step

        def step(feed_step: Any) -> None:
            if asked_in == worker.progress.step + 1:
                WISHES.ask(Wish.END)
            take_step(feed_step)
            self.steps[worker.progress.step] = worker.meter.metrics[-1]
            if crash_after == worker.progress.step:
                raise Crash

        worker.step = step  # type: ignore[method-assign]
        try:
            worker.run()
        except Crash:
            worker.checkpoints.wait()
        WISHES.strongest = Wish.NOTHING
        return worker


def make_job(tokens: TokenFolder, out: Path, batches: dict | None = None, training: dict | None = None) -> TrainJob:
    """Return a job over a folder of `make_token_folder`."""
    return TrainJob(
        tokens_folder=tokens.folder,
        out=str(out),
        model=ModelConfig(**SIZES),  # type: ignore[arg-type]
        batches=BatchesConfig(**{**BATCHES, **(batches or {})}),
        training=TrainingConfig(**{**TRAINING, **(training or {})}),
    )


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put plain functions in the place of what a worker asks Ray for."""
    stands: dict[str, Callable] = {
        "own_cpus": lambda: 1,
        "poll_less": lambda: None,
        "ask_to_save_once": lambda was_asked: was_asked,
        "device_peak": lambda device, dtype: Peak(1e12, "nothing"),
        "open_feed": lambda tokens, config, epochs, cursor: read_lanes(tokens, config, epochs, cursor),
        "split_feed": lambda feed, workers: [feed],
        "read_rows": lambda share, ahead: share,
    }
    for name, stand in stands.items():
        monkeypatch.setattr(worker_file, name, stand)
    monkeypatch.setattr(worker_file.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    context = SimpleNamespace(get_local_world_size=lambda: 1)
    monkeypatch.setattr(worker_file.ray.train, "get_context", lambda: context)


def read_lanes(tokens: TokenFolder, config: BatchesConfig, epochs: int, cursor: Cursor) -> Iterator[pa.Table]:
    """Yield the rows that the feed has, one after the other."""
    lanes = PoolLanes(tokens, config, cursor)
    for number in range(count_pools(mix_shards(tokens, config), config, epochs, cursor)):
        rows = lanes(pa.table({"item": [number]}))
        yield from (rows.slice(row, 1) for row in range(len(rows)))
