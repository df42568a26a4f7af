"""What was trained on, for tests: TFRAY_TRACE=SECONDS has each worker note the examples of every step and lane, and
pause so long after each step, in which something can be killed."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

from tfray.batches.batch import Batch

VARIABLE, FOLDER = "TFRAY_TRACE", "trace"


def wanted_trace() -> float | None:
    """Return the pause after each step where whoever started the job wants a trace; None: no trace is wanted."""
    value = os.environ.get(VARIABLE)
    return float(value) if value else None


class Trace:
    """Appends a line (step, lane, hash of the examples' ids) for each micro-batch to a file of this process' own."""

    def __init__(self, out: str, pause: float) -> None:
        self.pause = pause
        folder = Path(out) / FOLDER
        folder.mkdir(exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}.txt"

    def add(self, step: int, lanes: list[int], batches: list[Batch]) -> None:
        """Note the micro-batches of a step that was taken."""
        with self.path.open("a") as file:
            for lane, batch in zip(lanes, batches, strict=True):
                file.write(f"{step} {lane} {hash_of(batch)}\n")
        time.sleep(self.pause)


def hash_of(batch: Batch) -> str:
    """Return what tells a micro-batch's examples and their order apart."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (batch.source_ids, batch.label_ids):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
