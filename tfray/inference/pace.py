"""How fast a job goes, from the units that its models have finished."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

PATIENCE = 1.3  # units in whose time a model that is not heard of is taken to be gone
LEAST_PATIENCE = 5.0  # seconds


@dataclass
class Worked:
    """What one model has done."""

    first: tuple[float, float, int]
    """Begin and end of its first unit, by its own clock, and the unit's rows."""
    ended: float
    heard: float
    """By our clock."""
    rows: int = 0
    units: int = 0

    @property
    def span(self) -> tuple[float, int, int]:
        """Seconds, rows and units; its first unit, in which it warms up, counts only where there is no other."""
        began, ended, rows = self.first
        if self.units == 1:
            return ended - began, rows, 1
        return self.ended - ended, self.rows - rows, self.units - 1


@dataclass
class Pace:
    """Rows a second of all models together.

    Each counts from the end of its first unit to the end of its last one: the time until models are loaded and
    warm, and the units that are under way, would make a job look slower than it is.
    """

    models: int
    """That are to work at a time; those that were not heard of yet are taken to be as fast as the others."""
    workers: dict[str, Worked] = field(default_factory=dict)

    def take(self, record: dict) -> None:
        """Count a unit."""
        began, ended, now = record["began"], record["began"] + record["seconds"], time.monotonic()
        worker = self.workers.setdefault(record["worker"], Worked((began, ended, record["unit_rows"]), ended, now))
        worker.ended, worker.heard = max(worker.ended, ended), now
        worker.rows, worker.units = worker.rows + record["unit_rows"], worker.units + 1

    @property
    def rate(self) -> float | None:
        """Rows a second, from now on; None where nothing is known."""
        known = [worker.span for worker in self.workers.values() if worker.units > 1]
        known = known or [worker.span for worker in self.workers.values()]
        if not known:
            return None
        seconds, rows, units = (sum(part) for part in zip(*known, strict=True))
        patience, now = max(LEAST_PATIENCE, PATIENCE * seconds / units), time.monotonic()
        there = sum(now - worker.heard <= patience for worker in self.workers.values())
        return rows / max(seconds, 1e-6) * max(there, self.models)
