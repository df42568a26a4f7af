"""Trainings as a user starts them, on a real Ray of several nodes, slow enough for something to be done to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import ENVIRONMENT
from tfray.training.trace import FOLDER

LANES, STEPS = 4, 100
OPTIONS = [
    *("--model.preset", "tiny", "--model.d_model", "32", "--model.num_heads", "2", "--model.d_ff", "64"),
    *("--model.encoder_layers", "1", "--model.decoder_layers", "1", "--training.precision", "fp32"),
    *("--batches.lanes", str(LANES), "--batches.max_tokens", "200", "--batches.pool_examples", "100"),
    *("--training.epochs", "50", "--training.max_steps", str(STEPS), "--training.learning_rate", "3e-3"),
    *("--training.warmup_steps", "20", "--training.checkpoint_every", "8", "--training.validate_every", "40"),
    *("--training.valid_rows", "0", "--training.log_every", "1", "--training.max_failures", "99"),
    *("--training.cpus_per_worker", "0.3"),
]
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
    "TFRAY_RESIZE_SECONDS": "3",
    "OMP_NUM_THREADS": "1",
}


class Run:
    """A training, started as a user does."""

    def __init__(self, tokens: Path, out: Path, address: str) -> None:
        self.tokens, self.out, self.address = tokens, out, address
        self.log = out.with_suffix(".log")

    def start(self, workers: str, *options: str, pause: float = 0.05) -> None:
        """Start the command; it goes on where an earlier one ended."""
        command = [sys.executable, "-m", "tfray.cli", "train", "--tokens_folder", str(self.tokens)]
        own = ["--out", str(self.out), "--address", self.address, "--training.workers", workers, *OPTIONS, *options]
        environment = {**os.environ, **ENVIRONMENT, **QUICK, "TFRAY_TRACE": str(pause)}
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


def read_trace(out: Path) -> dict[tuple[int, int], list[str]]:
    """Return the hashes of each (step, lane), one for each time that it was done; a line that a kill has cut is left
    out."""
    found: dict[tuple[int, int], list[str]] = {}
    for path in sorted((out / FOLDER).glob("*.txt")):
        whole = path.read_text().rpartition("\n")[0]
        for line in whole.splitlines():
            step, lane, name = line.split()
            found.setdefault((int(step), int(lane)), []).append(name)
    return found
