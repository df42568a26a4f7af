"""What every unit of a predict job needs besides itself."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.checkpoint.folder import ModelFolder
from tfray.config import GenerationConfig, InferenceConfig
from tfray.inference.attempts import Attempts, open_attempts
from tfray.inference.columns import Task, added_fields, output_schema
from tfray.units.lock import Ticket
from tfray.units.plan import Unit


class Assignment(NamedTuple):
    """The job as its workers see it; the weights travel apart."""

    folder: ModelFolder
    out: str
    task: Task
    source: str
    target: str | None
    """Column of the target, of task score alone."""
    rows: pa.Schema
    """The columns of the input."""
    generation: GenerationConfig
    inference: InferenceConfig
    identities: dict[str, list]
    """What the input files were when the run began."""
    ticket: Ticket | None = None
    """By which workers see that they write where the driver does; none where nobody else can."""
    start: str = ""
    """Of the job, in which deaths of workers count."""

    @property
    def text_columns(self) -> set[str]:
        return {self.source} | ({self.target} if self.target else set())

    @property
    def added(self) -> list[pa.Field]:
        """The columns that the task adds, without their prefix."""
        return added_fields(self.task, self.generation, self.inference, self.folder.architecture.d_model)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the output."""
        return output_schema(self.rows, self.added, self.inference.prefix)

    def place(self, name: str) -> str:
        """Return the place of a file in the output folder."""
        return storage.join(self.out, name)

    def check_place(self) -> None:
        """Raise InputError where this worker sees another output folder than the driver, or the driver is replaced."""
        if self.ticket:
            self.ticket.check()

    def attempts(self, unit: Unit, step: str) -> Attempts:
        """Return what is known of earlier attempts of a step at a unit."""
        return open_attempts(self.out, unit.stem, step, self.start)
