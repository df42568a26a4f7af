"""How fast a job goes, from the units that its models have finished."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

PATIENCE = 1.5  # units in whose time a model that is not heard of is taken to be gone
LEAST_PATIENCE = 10.0  # seconds


@dataclass
class Worked:
    """What one model has done."""

    began: float
    ended: float
    """By its own clock."""
    heard: float
    """By ours."""
    rows: int = 0
    units: int = 0

    @property
    def rate(self) -> float:
        return self.rows / max(self.ended - self.began, 1e-6)

    def is_there(self, now: float) -> bool:
        return now - self.heard <= max(LEAST_PATIENCE, PATIENCE * (self.ended - self.began) / self.units)


@dataclass
class Pace:
    """Rows a second of all models together.

    Each counts from the beginning of its first unit to the end of its last one: the time until models were
    loaded, and the units that are under way, would make a job look slower than it is.
    """

    models: int
    """That are to work at a time; those that were not heard of yet are taken to be as fast as the others."""
    workers: dict[str, Worked] = field(default_factory=dict)

    def take(self, record: dict) -> None:
        """Count a unit."""
        began, ended, now = record["began"], record["began"] + record["seconds"], time.monotonic()
        worker = self.workers.setdefault(record["worker"], Worked(began, ended, now))
        worker.began, worker.ended, worker.heard = min(worker.began, began), max(worker.ended, ended), now
        worker.rows, worker.units = worker.rows + record["unit_rows"], worker.units + 1

    @property
    def rate(self) -> float | None:
        """Rows a second, from now on; None where nothing is known."""
        there = [worker for worker in self.workers.values() if worker.is_there(time.monotonic())]
        if not there:
            return None
        mean = sum(worker.rate for worker in there) / len(there)
        return mean * max(len(there), self.models)
