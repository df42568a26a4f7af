"""A dry run: what a job would take, from its plan and a sample of its rows."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tfray import storage
from tfray.checkpoint.folder import ModelFolder
from tfray.config import PredictJob
from tfray.corpus.read import Rows
from tfray.inference.answer import AnswerUnit
from tfray.inference.assignment import Assignment
from tfray.inference.columns import Task
from tfray.inference.encode import EncodeUnit
from tfray.inference.handover import Encoded
from tfray.inference.planning import assign, may_use_gpu, plan_rows
from tfray.inference.quality import check_quality
from tfray.inference.sample import Sample, sample_rows
from tfray.inference.write import WriteUnit
from tfray.report.tables import format_table
from tfray.units.ledger import Ledger
from tfray.units.place import find_place
from tfray.units.plan import Unit
from tfray.units.status import duration
from tfray.units.stored import read_plan

SAMPLE_ROWS = 100
MOST_COPIES, COPIES_SECONDS = 8, 8.0
"""A hundred rows alone leave the engine half empty: its rate is that of copies of them, as many as are soon done."""


def report_dry_run(job: PredictJob, folder: ModelFolder, task: Task, made_from: dict[str, object]) -> str:
    """Return a report of what a job would find and take; nothing is written but a sample in a temporary folder.

    Raises InputError where the job would, for the place where it is to write.
    """
    storage.check_creatable(job.out)
    ledger = find_place(job.out, made_from, job.mode)
    found = describe_place(ledger)
    if ledger.is_finished and not ledger.adds_to:
        return f"there is nothing to predict\n{found}"
    return f"{estimate(job, folder, task, new_inputs(ledger))}\n{found}"


def new_inputs(ledger: Ledger) -> list[str]:
    """Return the input files of which a run makes something: of one that adds to another only those that are new."""
    inputs: dict = ledger.made_from["inputs"]  # type: ignore[assignment]
    return [path for path in inputs if not ledger.adds_to or path not in ledger.adds_to["inputs"]]


def describe_place(ledger: Ledger) -> str:
    """Return what a run would find where it writes, and do with it."""
    if ledger.adds_to:
        return f"{ledger.out} is there; {len(new_inputs(ledger)):,} input files would be added to it"
    if not ledger.is_begun:
        return (
            f"{ledger.out} would be replaced once the new run is whole" if ledger.replaces else f"{ledger.out} is new"
        )
    if ledger.is_finished and not ledger.replaces:
        return f"{ledger.out} is finished and unchanged; there is nothing to do"
    units = read_plan(ledger.folder, ledger.manifest["plan"])[0]
    done = len(units) - len(ledger.remaining(units))
    return f"{ledger.out} was begun; {done:,} of {len(units):,} units are done, the run would go on with the others"


def estimate(job: PredictJob, folder: ModelFolder, task: Task, paths: list[str]) -> str:
    """Return what a job would take for input files, from a sample of their rows."""
    plan = plan_rows(job, folder, task, paths)
    units = plan.units
    total = sum(unit.rows for unit in units)
    if not units:
        return format_table(["units", "rows"], [[0, 0]]) + "\nthere is nothing to predict"
    with tempfile.TemporaryDirectory(prefix="tfray-") as place:
        assignment = assign(job, place, folder, task, plan, {})
        sample = sample_rows(units, assignment.rows, assignment.text_columns, SAMPLE_ROWS)
        if not sample.places:
            report = format_table(["units", "rows"], [[len(units), total]]) + "\nno row could be read for a sample"
            return "; ".join([report, *sample.damages[:1]])
        comparison = check_quality(job, units, assignment)
        record = carry_out(sample, assignment)
    seconds, count = max(record["seconds"], 1e-3), max(1, record["rows"])
    room = max(1, (os.cpu_count() or 1) // job.inference.cpus_per_actor)
    workers = job.inference.actors or min(room, job.inference.max_actors or room)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    table = format_table(
        ["units", "rows", "sample rows", "errors in it", "rows/s a model", "models", "time", "MB a model", "MB out"],
        [
            [
                *(f"{len(units):,}", f"{total:,}", f"{count:,}", sum(record["errors"].values())),
                *(f"{count / seconds:,.1f}", workers, duration(total * seconds / count / workers)),
                *(f"{memory + 3 * max(unit.bytes for unit in units) / 1e6:,.0f}",),
                f"{record['bytes'] * total / count / 1e6:,.1f}",
            ]
        ],
    )
    first = f"\nthe first error: {record['first_error']}" if record["first_error"] else ""
    quality = f"\n{comparison}" if comparison else ""
    return f"{table}{first}{quality}\nthe models are those of this machine; nothing was written"


class EncodeSample(EncodeUnit):
    """Stage: encodes rows that were read before, as often as there are copies of them."""

    def __init__(self, assignment: Assignment, sample: Sample) -> None:
        super().__init__(assignment)
        self.sample = sample
        self.unit = Unit(0, "the sample", "parquet", None, 0, 0, 0, 0, sample.table.nbytes)

    def first(self, rows: int) -> Encoded:
        """Return the first rows, encoded; more than there are begin anew."""
        return self(replace(self.unit, stop=rows, rows=rows))

    def read(self, unit: Unit) -> tuple[Rows, str | None]:
        """Return the rows of the sample for a unit of so many."""
        count = len(self.sample.table)
        copies = pa.concat_tables([self.sample.table] * -(-unit.stop // count)).slice(0, unit.stop)
        errors = {row: self.sample.errors[row % count] for row in range(unit.stop) if row % count in self.sample.errors}
        return Rows(copies, errors, 0), None


def carry_out(sample: Sample, assignment: Assignment) -> dict:
    """Return the record of a sample, done in this process, and the seconds that it takes among many rows."""
    rows = len(sample.table)
    encode, write = EncodeSample(assignment, sample), WriteUnit(assignment)
    weights = np.frombuffer(assignment.folder.read_weights(), np.uint8)
    answer = AnswerUnit(assignment, weights, may_use_gpu(assignment.inference))
    answer(encode.first(min(rows, 8)))  # the first rows wait for libraries and memory
    began = time.monotonic()
    answered = answer(encode.first(rows))
    record = write(answered)
    seconds = time.monotonic() - began
    copies = min(MOST_COPIES, int(COPIES_SECONDS / seconds))
    if copies > 1:
        began = time.monotonic()
        answer(encode.first(copies * rows))
        seconds = (time.monotonic() - began) / copies
    return {**record, "seconds": seconds, "first_error": sample.first_error(answered.notes | answered.errors)}
