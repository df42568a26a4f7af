"""How fast a job goes, from the units that its models have finished."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

PATIENCE = 1.3  # units in whose time a model that is not heard of is taken to be gone
LEAST_PATIENCE = 5.0  # seconds
ABSENCE = 4.0  # units in whose time models that are to work are expected to come, or to come again


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
    """That are to work at a time; those that are not heard of are for some time taken to be as fast as the others."""
    workers: dict[str, Worked] = field(default_factory=dict)
    complete: float = 0.0
    """When all of them were last at work, by our clock; at first when one of them was."""

    def take(self, record: dict) -> None:
        """Count a unit."""
        began, ended, now = record["began"], record["began"] + record["seconds"], time.monotonic()
        worker = self.workers.setdefault(record["worker"], Worked((began, ended, record["unit_rows"]), ended, now))
        worker.ended, worker.heard = max(worker.ended, ended), now
        worker.rows, worker.units = worker.rows + record["unit_rows"], worker.units + 1
        if len(self.workers) == worker.units == 1 or self.there(now) >= self.models:
            self.complete = now

    @property
    def spans(self) -> tuple[float, int, int]:
        """Seconds, rows and units of all models that tell something."""
        known = [worker.span for worker in self.workers.values() if worker.units > 1]
        known = known or [worker.span for worker in self.workers.values()]
        seconds, rows, units = (sum(part) for part in zip(*known, strict=True))
        return seconds, int(rows), int(units)

    def there(self, now: float) -> int:
        """Return how many models are at work, as far as they are heard of."""
        seconds, _, units = self.spans
        patience = max(LEAST_PATIENCE, PATIENCE * seconds / units)
        return sum(now - worker.heard <= patience for worker in self.workers.values())

    @property
    def rate(self) -> float | None:
        """Rows a second, from now on; None where nothing is known."""
        if not self.workers:
            return None
        seconds, rows, units = self.spans
        now = time.monotonic()
        there = self.there(now)
        if now - self.complete <= max(LEAST_PATIENCE, ABSENCE * seconds / units):
            there = max(there, self.models)
        return rows / max(seconds, 1e-6) * max(there, 1)
