"""What is to be done: the task, the columns, the units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from tfray.checkpoint.folder import ModelFolder
from tfray.config import InferenceConfig, PredictJob
from tfray.corpus.columns import (
    SOURCE_NAMES,
    TARGET_NAMES,
    check_columns,
    choose_columns,
    choose_source,
    describe_field,
)
from tfray.corpus.read import with_schemas
from tfray.errors import InputError
from tfray.inference.assignment import Assignment
from tfray.inference.columns import Task, input_schema, output_schema
from tfray.units.files import InputFile, find_files
from tfray.units.plan import Unit, plan_units

SMALLEST_UNIT, LARGEST_UNIT = 512, 65_536  # rows; fewer leave slots of the engine empty
MOST_PIECES = 256  # of a compressed file: to uncompress the half of 10 GB takes about ten seconds
UNIT_SECONDS = 60.0
CORE_RATE, GPU_RATE = 60e9, 5e12  # operations a second while decoding, by order of magnitude
BYTES_PER_TOKEN = 4
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def choose_task(wanted: str, trained: str) -> Task:
    """Return what is to be done with a model that was trained for something."""
    if wanted == "auto":
        return "classify" if trained == "classification" else "generate"
    return wanted  # type: ignore[return-value]


def check_task(task: Task, folder: ModelFolder, job: PredictJob) -> None:
    """Raise InputError where the model cannot do what is wanted, or a setting is of another task or model."""
    if task == "classify" and not folder.tokenizer.label_ids:
        raise InputError(
            f"task='classify' needs labels, and {folder.folder!r} was trained for {folder.task}; leave the task out"
        )
    if task in ("generate", "score") and folder.tokenizer.label_ids:
        raise InputError(
            f"task={task!r} is for targets of text, and {folder.folder!r} was trained for labels; leave the task out, "
            "or use classify or embed"
        )
    if job.inference.token_scores and task != "score":
        raise InputError(f"inference.token_scores is for task='score', and the task is {task!r}; leave it out")
    labels = len(folder.tokenizer.label_ids)
    if task == "classify" and job.generation.n_best > labels:
        raise InputError(
            f"generation.n_best={job.generation.n_best} is more than the model's {labels} labels; use {labels} at most"
        )
    job.generation.check_vocabulary(folder.architecture.vocab_size)
    if job.target_column and task != "score":
        raise InputError(
            f"target_column={job.target_column!r} is for task='score', and the task is {task!r}; leave it out"
        )


class TextColumns(NamedTuple):
    """The columns of source and target; the latter of task score alone."""

    source: str
    target: str | None


def choose_texts(job: PredictJob, task: Task, files: list[InputFile]) -> TextColumns:
    """Return the columns of source and target in the first file that has them; raises InputError where none has."""
    if task != "score":
        return TextColumns(choose_source(files, job.source_column), None)
    columns = choose_columns(files, job.source_column, job.target_column, "translation")
    return TextColumns(columns.source, columns.target)


class Plan(NamedTuple):
    """The units of a run, and the columns of their rows."""

    units: list[Unit]
    rows: pa.Schema
    texts: TextColumns


def plan_rows(job: PredictJob, folder: ModelFolder, task: Task, paths: list[str], known: Plan | None = None) -> Plan:
    """Return the plan for input files, added to a plan that was made before.

    Raises InputError for a file that cannot be used.
    """
    files = with_schemas(find_files(paths))
    check_formats(files)
    if all(file.is_empty for file in files):
        return known or plan_nothing(job, task, files)
    texts = known.texts if known and known.units else choose_texts(job, task, files)
    needed = {name for name in texts if name}
    for file in files:
        check_columns(file, needed, needed)
    rows = input_schema(files, needed, job.inference)
    if known is not None:
        check_known(rows, known.rows)
    largest = job.inference.unit_rows or LARGEST_UNIT
    most_bytes = None if job.inference.unit_rows else bytes_a_unit(job, folder, task)
    before = known.units if known else []
    smallest = min(SMALLEST_UNIT, largest)
    units = plan_units(
        files, smallest, largest, most_bytes=most_bytes, most_pieces=MOST_PIECES, first_index=len(before)
    )
    return Plan([*before, *units], known.rows if known else rows, texts)


def check_formats(files: list[InputFile], setting: str = "input") -> None:
    """Raise InputError where plain text stands among files with columns: most often it is no input at all."""
    texts = [file.path for file in files if file.format == "text"]
    others = [file.path for file in files if file.format != "text"]
    if texts and others:
        raise InputError(
            f"{setting} {texts[0]!r} counts as plain text, by its ending, and {others[0]!r} has columns; name the "
            f"files to predict by a glob (--{setting} 'DIR/*.parquet'), or predict the plain text into a folder of its "
            "own"
        )


def bytes_a_unit(job: PredictJob, folder: ModelFolder, task: Task) -> float:
    """Return about how many bytes of input keep a model busy for a minute, from its size alone; nothing is measured.

    Half of the parameters see a source token, and half of them each hypothesis' token, in two operations each.
    """
    hypotheses = job.generation.width if task == "generate" else 1
    operations = folder.parameters * (1 + hypotheses)
    rate = GPU_RATE if may_use_gpu(job.inference) else CORE_RATE * job.inference.cpus_per_actor
    return UNIT_SECONDS * rate / operations * BYTES_PER_TOKEN


def may_use_gpu(config: InferenceConfig) -> bool:
    """Say whether models run on GPUs, as far as this machine knows before it has reached the cluster."""
    return config.use_gpu == "yes" or (config.use_gpu == "auto" and local_gpus() > 0)


def local_gpus() -> int:
    """Return how many GPUs torch finds here; asked only where there is a driver, for its import takes seconds."""
    if not any(map(os.path.exists, GPU_DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count()


def plan_nothing(job: PredictJob, task: Task, files: list[InputFile]) -> Plan:
    """Return the plan for files without rows: their columns, and that of the source in any case."""
    rows = input_schema(files, set(), job.inference)
    source = job.source_column or first_there(SOURCE_NAMES, rows)
    target = (job.target_column or first_there(TARGET_NAMES, rows)) if task == "score" else None
    missing = [(name, pa.string()) for name in (source, target) if name and name not in rows.names]
    return Plan([], pa.schema([*rows, *missing]), TextColumns(source, target))


def first_there(names: Sequence[str], columns: pa.Schema) -> str:
    """Return the first of some names that is a column, or else the first."""
    return next((name for name in names if name in columns.names), names[0])


def check_known(rows: pa.Schema, known: pa.Schema) -> None:
    """Raise InputError where added files do not fit the columns that were written before."""
    types = {field.name: field.type for field in known}
    differing = [describe_field(field) for field in rows if types.get(field.name) != field.type]
    if differing:
        raise InputError(
            f"mode='append': the new files have columns that the output has not, or not so: {', '.join(differing)}; "
            "predict them into a folder of their own"
        )


def assign(
    job: PredictJob, out: str, folder: ModelFolder, task: Task, plan: Plan, identities: dict[str, list]
) -> Assignment:
    """Return what every unit needs; raises InputError where an input column has the name of one of ours."""
    assignment = Assignment(folder, out, task, *plan.texts, plan.rows, job.generation, job.inference, identities)
    output_schema(plan.rows, assignment.added, job.inference.prefix)
    return assignment
