"""What is to be done: the task, the columns, the units."""

from __future__ import annotations

import pyarrow as pa

from tfray.checkpoint.folder import ModelFolder
from tfray.config import PredictJob
from tfray.corpus.columns import check_columns, choose_columns, choose_source
from tfray.errors import InputError
from tfray.inference.assignment import Assignment
from tfray.inference.columns import Task, input_schema
from tfray.units.ledger import Ledger
from tfray.units.plan import Unit, find_files, plan_units

UNIT_ROWS, GPU_UNIT_ROWS = 4096, 65_536  # at most
SMALLEST_UNIT = 64


def choose_task(wanted: str, trained: str) -> Task:
    """Return what is to be done with a model that was trained for something."""
    if wanted == "auto":
        return "classify" if trained == "classification" else "generate"
    return wanted  # type: ignore[return-value]


def check_task(task: Task, folder: ModelFolder, job: PredictJob) -> None:
    """Raise InputError where the model cannot do what is wanted, or a setting is of another task."""
    if task == "classify" and not folder.tokenizer.label_ids:
        raise InputError(f"task='classify' needs labels, and {folder.folder!r} was trained for {folder.task}; leave "
                         "the task out")  # fmt: skip
    labels = len(folder.tokenizer.label_ids)
    if task == "classify" and job.generation.n_best > labels:
        raise InputError(f"generation.n_best={job.generation.n_best} is more than the model's {labels} labels; use "
                         f"{labels} at most")  # fmt: skip
    if job.target_column and task != "score":
        raise InputError(f"target_column={job.target_column!r} is for task='score', and the task is {task!r}; leave "
                         "it out")  # fmt: skip


def choose_texts(job: PredictJob, task: Task, files: list) -> tuple[str, str | None]:
    """Return the columns of source and target; the latter of task score alone."""
    if task != "score":
        return choose_source(files, job.source_column), None
    columns = choose_columns(files, job.source_column, job.target_column, "translation")
    return columns.source, columns.target


def plan_rows(
    job: PredictJob, task: Task, paths: list[str], known: pa.Schema | None, first_index: int
) -> tuple[list[Unit], pa.Schema]:
    """Return the units of input files and the columns of their rows; `known`: those that were decided before.

    Raises InputError for a file that cannot be used.
    """
    files = find_files(paths)
    if all(file.is_empty for file in files):
        rows = input_schema(files, set(), job.inference)
        name = job.source_column or "source"
        empty = rows if name in rows.names or "text" in rows.names else pa.schema([*rows, (name, pa.string())])
        return [], known or empty
    source, target = choose_texts(job, task, files)
    needed = {source, target} - {None}
    for file in files:
        check_columns(file, needed, needed)  # type: ignore[arg-type]
    rows = input_schema(files, needed, job.inference)  # type: ignore[arg-type]
    if known is not None:
        check_known(rows, known)
    usual = GPU_UNIT_ROWS if job.inference.use_gpu == "yes" else UNIT_ROWS
    largest = job.inference.unit_rows or usual
    return plan_units(files, min(SMALLEST_UNIT, largest), largest, first_index=first_index), known or rows


def check_known(rows: pa.Schema, known: pa.Schema) -> None:
    """Raise InputError where added files do not fit the columns that were written before."""
    differing = [str(field) for field in rows if field.name not in known.names or known.field(field.name).type
                 != field.type]  # fmt: skip
    if differing:
        raise InputError(
            f"mode='append': the new files have columns that the output has not, or not so: {', '.join(differing)}; "
            "predict them into a folder of their own"
        )


def make_assignment(job: PredictJob, ledger: Ledger, folder: ModelFolder, task: Task, rows: pa.Schema) -> Assignment:
    """Return what every unit needs; raises InputError where an input column has the name of one of ours."""
    inputs = ledger.made_from["inputs"]
    assert isinstance(inputs, dict)
    return assign(job, ledger.folder, folder, task, rows, inputs)


def assign(
    job: PredictJob, out: str, folder: ModelFolder, task: Task, rows: pa.Schema, identities: dict[str, list]
) -> Assignment:
    """Return what every unit needs; raises InputError where an input column has the name of one of ours."""
    source = first_present(rows, job.source_column, ("source", "text"))
    target = first_present(rows, job.target_column, ("target", "label")) if task == "score" else None
    assignment = Assignment(
        folder, out, task, source, target, rows, job.generation, job.inference, identities
    )  # fmt: skip
    assert assignment.schema
    return assignment


def first_present(rows: pa.Schema, wanted: str | None, usual: tuple[str, ...]) -> str:
    """Return the wanted column, or the first usual one that the rows have."""
    return wanted or next((name for name in usual if name in rows.names), usual[0])
