"""What the workers write into the log, once for all of them."""

from __future__ import annotations

from tfray.checkpoint.state import Progress
from tfray.training.assignment import Assignment
from tfray.training.log import write_event
from tfray.training.meter import Meter
from tfray.training.stop import Wish
from tfray.training.validation import Finding


class Journal:
    """Of one worker; all but that of rank 0 stay silent."""

    def __init__(self, assignment: Assignment, steps: int, rank: int, meter: Meter) -> None:
        self.assignment, self.steps, self.is_writer, self.meter = assignment, steps, rank == 0, meter

    def check_place(self) -> None:
        """Raise InputError where another command has taken over (the driver of this worker was killed), or where this
        machine sees another folder."""
        if self.is_writer:
            self.assignment.ticket.check()

    def write(self, step: int, event: dict) -> None:
        """Write an event of a step's weights."""
        self.check_place()
        if self.is_writer:
            when = {"step": step, "seconds": round(self.meter.seconds, 2)}
            write_event(self.assignment.job.out, {**event, **when})

    def started(self, step: int, parameters: int, workers: int, surplus: int, device: str, precision: str) -> None:
        """Say what is trained on what."""
        self.write(
            step,
            {
                "event": "start",
                "parameters": parameters,
                "steps": self.steps,
                "workers": workers,
                "surplus_workers": surplus,
                "lanes": self.assignment.job.batches.lanes,
                "device": device,
                "precision": precision,
                "peak": self.meter.peak.source if self.meter.peak else "",
            },
        )

    def trained(self, progress: Progress, rate: float, saved_seconds: float) -> None:
        """Say how training went since the last line; `saved_seconds` is all the time that it stood still for
        checkpoints."""
        rates = self.meter.take(saved_seconds)
        left = max(0, self.steps - progress.step) * rates.pop("seconds_per_step")
        self.write(
            progress.step,
            {
                "event": "train",
                "steps": self.steps,
                "epoch": progress.epoch,
                "tokens": progress.tokens,
                "learning_rate": rate,
                "seconds_left": round(left, 1),
                **rates,
            },
        )

    def validated(self, finding: Finding, is_best: bool) -> None:
        """Say what validation found, if anything."""
        if finding.metrics:
            took = round(finding.seconds, 2)
            event = {"event": "valid", **finding.metrics, "is_best": is_best, "validation_seconds": took}
            self.write(finding.step, event)

    def stopped(self, step: int, wish: Wish) -> None:
        """Say that training ends before its last step, all of it saved."""
        self.write(step, {"event": "stop", "reason": wish.name.lower()})
