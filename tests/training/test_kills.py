"""Killed anywhere, moved to more or fewer workers and started again: the same examples in the same steps and lanes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ENVIRONMENT, Nodes
from tests.training.token_folders import make_token_folder
from tfray.training.trace import read_trace

pytestmark = pytest.mark.ray

ROUNDS = int(os.environ.get("TFRAY_KILLS", "1"))
"""How often a worker, a node and the driver are each killed."""
LANES, STEPS = 4, 150
OPTIONS = [
    *("--model.preset", "tiny", "--model.d_model", "32", "--model.num_heads", "2", "--model.d_ff", "64"),
    *("--model.encoder_layers", "1", "--model.decoder_layers", "1", "--training.precision", "fp32"),
    *("--batches.lanes", str(LANES), "--batches.max_tokens", "200", "--batches.pool_examples", "100"),
    *("--training.epochs", "50", "--training.max_steps", str(STEPS), "--training.learning_rate", "3e-3"),
    *("--training.warmup_steps", "20", "--training.checkpoint_every", "8", "--training.validate_every", "60"),
    *("--training.valid_rows", "0", "--training.log_every", "1", "--training.max_failures", "99"),
    *("--training.cpus_per_worker", "0.3"),
]
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
    "TFRAY_RESIZE_SECONDS": "3",
    "TFRAY_TRACE": "0.05",  # the seconds are there for something to be killed
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two more nodes."""
    nodes = Nodes(3)
    yield nodes
    nodes.stop()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "tokens"
    make_token_folder(folder)
    return folder


class Run:
    """A training, started as a user does."""

    def __init__(self, tokens: Path, out: Path, address: str) -> None:
        self.tokens, self.out, self.address = tokens, out, address
        self.log = out.with_suffix(".log")

    def start(self, workers: str, *options: str) -> None:
        """Start the command; it goes on where an earlier one ended."""
        command = [sys.executable, "-m", "tfray.cli", "train", "--tokens_folder", str(self.tokens)]
        own = ["--out", str(self.out), "--address", self.address, "--training.workers", workers, *OPTIONS, *options]
        environment = {**os.environ, **ENVIRONMENT, **QUICK}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *own], stdout=log, stderr=log, env=environment)

    def events(self) -> list[dict]:
        """Return the events of the run's log."""
        path = self.out / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for(self, step: int, workers: int | None = None, after: int = 0) -> None:
        """Return when workers (so many) have taken a step, or training is over, after so many events."""
        deadline = time.monotonic() + 240
        while self.process.poll() is None:
            events = self.events()[after:]
            starts = [event["workers"] for event in events if event["event"] == "start"]
            reached = any(event["event"] == "train" and event["step"] >= step for event in events)
            if reached and (workers is None or starts[-1:] == [workers]):
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        assert self.process.returncode == 0, self.log.read_text()

    def end(self) -> dict:
        """Wait for the training's end, and return what its manifest says."""
        assert self.process.wait(240) == 0, self.log.read_text()
        return json.loads((self.out / "_manifest.json").read_text())

    @property
    def step(self) -> int:
        """The last step that the log tells of."""
        return max((event["step"] for event in self.events() if event["event"] == "train"), default=0)


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.mark.timeout(1500)
def test_the_sequence_of_examples_is_the_same_whatever_is_killed_and_however_many_workers_there_are(
    nodes: Nodes, tokens: Path, tmp_path: Path
) -> None:
    calm, killed = Run(tokens, tmp_path / "calm", nodes.address), Run(tokens, tmp_path / "killed", nodes.address)
    calm.start("1")
    expected = calm.end()
    chance = random.Random(ROUNDS)
    kills: Counter[str] = Counter()
    workers = "2"
    killed.start(workers)
    for _ in range(ROUNDS):
        killed.wait_for(killed.step + chance.randrange(2, 15))
        for process in nodes.workers("RayTrainWorker")[: chance.randrange(1, 3)]:
            kill(process.pid)
            kills["worker"] += 1
        after = len(killed.events())
        killed.wait_for(killed.step + chance.randrange(2, 15), after=after)
        nodes.tell("lose")
        nodes.tell("add")
        kills["node"] += 1
        for workers in ("1", "4"):
            killed.wait_for(killed.step + chance.randrange(2, 15), after=len(killed.events()))
            if killed.process.poll() is None:
                killed.process.kill()
                killed.process.wait()
                kills["driver"] += 1
                killed.start(workers)
    found = killed.end()
    starts = [event["workers"] for event in killed.events() if event["event"] == "start"]
    print(f"killed: {dict(kills)}; starts with {starts} workers")
    trace, other = read_trace(calm.out), read_trace(killed.out)
    assert {len(names) for names in other.values()} == {1}, "what was done again was done with the same examples"
    assert set(trace) == {(step, lane) for step in range(STEPS) for lane in range(LANES)}
    assert other == trace
    assert found["steps"] == expected["steps"] == STEPS
    assert found["tokens"] == expected["tokens"]
    assert found["best_score"] == pytest.approx(expected["best_score"], rel=1e-4)
    assert {1, 2, 4} <= set(starts)
