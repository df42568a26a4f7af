"""What every unit of a predict job needs besides itself."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.checkpoint.folder import ModelFolder
from tfray.config import GenerationConfig, InferenceConfig
from tfray.inference.columns import Task, added_fields, output_schema


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
