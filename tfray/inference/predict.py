"""The predict job: files -> units -> one Parquet file a unit, exactly once.

    unit  ->  read, judge, encode  ->  the model  ->  decode, write, record
              CPU actors               one a GPU      CPU actors
                                       or core group

A unit is done when its record stands in the commit log; what dies before that is done again.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np

from tfray import storage
from tfray.checkpoint.folder import ModelFolder, open_model_folder
from tfray.cluster import connected
from tfray.config import PredictJob, as_list
from tfray.config.rules import results_follow_from
from tfray.errors import InputError, TooManyErrors
from tfray.inference.assignment import Assignment
from tfray.inference.attempts import ATTEMPTS
from tfray.inference.columns import Task
from tfray.inference.pace import Pace
from tfray.inference.planning import Plan, TextColumns, assign, check_task, choose_task, plan_rows
from tfray.inference.quality import QUALITY, check_quality
from tfray.inference.steps import check_room, make_steps, waiting_bytes
from tfray.inference.summary import SUMMARY, format_errors, summarize
from tfray.report.progress import Progress
from tfray.units.files import THREADS
from tfray.units.ledger import RECORDS, SUCCESS, Ledger, has_manifest, store_settings, sweep
from tfray.units.lock import Lock
from tfray.units.place import check_apart, mend, open_place, take_place
from tfray.units.plan import Unit, amount
from tfray.units.stored import read_plan, sweep_plans, write_plan
from tfray.units.stream import WorkLost, flow

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
ROWS_BEFORE_RATE = 1000  # of which an error rate says something
LOSSES_IN_A_ROW = 5
UNITS_AT_ONCE = 20_000  # more make Ray Data's start long


def predict(job: PredictJob) -> str:
    """Return the folder of predictions, made now or before; for a dry run, a report.

    Raises TooManyErrors where more rows have errors than may.
    """
    folder = open_model_folder(job.model_folder)
    task = choose_task(job.task, folder.task)
    check_task(task, folder, job)
    identities = identify(as_list(job.input))
    check_apart(as_list(job.input), [*identities], job.out, "input")
    check_room(job)
    if job.dry_run:
        from tfray.inference.dry_run import report_dry_run  # needs torch, which takes seconds to import

        return report_dry_run(job, folder, task, made_from(job, folder, task, identities))
    mend(job.out)
    storage.check_writable(job.out)
    with Lock(job.out) as lock, storage.writing(job.out):
        ledger = open_place(job.out, made_from(job, folder, task, identities), job.mode)
        if ledger.is_finished and not ledger.adds_to:
            logger.info("predictions: %s is finished and unchanged", ledger.out)
            check_finished(job, ledger)
        else:
            units, assignment = begin(job, ledger, folder, task)
            run_units(job, ledger, units, assignment, lock)
            finish(job, ledger, units, assignment)
        if ledger.replaces:
            take_place(ledger)
    return ledger.out


def identify(patterns: list[str]) -> dict[str, list]:
    """Return what tells each input file apart, by its path; no file is opened."""
    paths = list(dict.fromkeys(path for pattern in patterns for path in storage.expand(pattern, "input")))
    with ThreadPoolExecutor(THREADS) as threads:
        return {
            path: identity[1:] for path, identity in zip(paths, threads.map(storage.file_identity, paths), strict=True)
        }


def made_from(job: PredictJob, folder: ModelFolder, task: str, identities: dict[str, list]) -> dict[str, object]:
    """Return everything that the predictions follow from."""
    return {
        "format": FORMAT_VERSION,
        "model": folder.fingerprint,
        "task": task,
        "generation": results_follow_from(job.generation),
        "inference": results_follow_from(job.inference),
        "source_column": job.source_column,
        "target_column": job.target_column,
        "inputs": identities,
    }


def begin(job: PredictJob, ledger: Ledger, folder: ModelFolder, task: Task) -> tuple[list[Unit], Assignment]:
    """Return the units of a run and their assignment; planned now, or by an earlier start."""
    inputs: dict = ledger.made_from["inputs"]  # type: ignore[assignment]
    plan = known_plan(ledger)
    if plan is None or ledger.adds_to:
        before, known = ledger.adds_to["inputs"] if ledger.adds_to else {}, plan.units if plan else []
        plan = plan_rows(job, folder, task, [path for path in inputs if path not in before], plan)
        plan = plan._replace(units=[*known, *of_this_run(plan.units[len(known) :], ledger.made_from)])
    assignment = assign(job, ledger.folder, folder, task, plan, inputs)
    comparison = check_quality(job, plan.units, assignment)
    if not has_manifest(ledger.folder) or ledger.adds_to:
        name = write_plan(ledger.folder, inputs, plan.units, plan.rows)
        storage.remove(storage.join(ledger.folder, SUCCESS))
        ledger.begin(plan=name, texts=plan.texts)
    store_settings(ledger.folder, job)  # at each start: one that was killed may not have come so far
    if comparison:
        storage.publish_json(storage.join(ledger.folder, QUALITY), comparison._asdict())
    return plan.units, assignment


def of_this_run(units: list[Unit], made_from: dict[str, object]) -> list[Unit]:
    """Return units named after all that their rows' values follow from: a worker that another run has left behind
    on the same place writes under other names."""
    inputs: dict = made_from["inputs"]  # type: ignore[assignment]
    settings = {name: value for name, value in made_from.items() if name != "inputs"}
    return [replace(unit, run=storage.fingerprint([settings, inputs[unit.path]])) for unit in units]


def known_plan(ledger: Ledger) -> Plan | None:
    """Return the plan of an earlier start."""
    if not has_manifest(ledger.folder):
        return None
    manifest = ledger.manifest
    units, rows = read_plan(ledger.folder, manifest["plan"])
    assert rows is not None
    return Plan(units, rows, TextColumns(*manifest["texts"]))


class Tally:
    """Rows, tokens and errors so far, and whether there are too many of these."""

    def __init__(self, job: PredictJob, records: list[dict]) -> None:
        self.config = job.inference
        self.rows = self.cut_short = self.tokens = 0
        self.errors: Counter[str] = Counter()
        self.first: str | None = None
        for record in records:
            self.take(record)

    def take(self, record: dict) -> None:
        self.rows += record["rows"]
        self.cut_short += record.get("cut_short", 0)
        self.tokens += record["target_tokens"]
        self.errors.update(record["errors"])
        self.first = self.first or record["first_error"]

    def check(self, is_end: bool = False) -> None:
        """Raise TooManyErrors where a limit is passed."""
        count = self.errors.total()
        if self.config.fail_fast and count:
            raise TooManyErrors(
                f"inference.fail_fast: {self.first}; mend or remove the row, or leave fail_fast out: what is done "
                "stays done"
            )
        limit, rows = self.config.max_error_rate, self.rows + self.cut_short
        if (is_end or rows >= ROWS_BEFORE_RATE) and count > limit * rows:
            raise TooManyErrors(
                f"{format_errors({'errors': dict(self.errors.most_common()), 'rows': rows, 'first_errors': []})}"
                f"\n\n{count:,} of {rows:,} rows ({count / rows:.1%}) have errors, more than "
                f"inference.max_error_rate={limit:g} allows (the first: {self.first}); mend the input, or raise the "
                "rate and start the job again: what is done stays done"
            )


def run_units(job: PredictJob, ledger: Ledger, units: list[Unit], assignment: Assignment, lock: Lock) -> None:
    """Predict the units that are not done yet; what Ray loses and cannot make up for is begun again."""
    remaining = ledger.remaining(units)
    undone = {unit.index for unit in remaining}
    tally = Tally(job, ledger.records([unit for unit in units if unit.index not in undone]))
    tally.check()
    if not remaining:
        return
    if len(remaining) < len(units):
        logger.info("predictions: %d of %d units were done before", len(units) - len(remaining), len(units))
    weights = np.frombuffer(assignment.folder.read_weights(), np.uint8)
    losses = 0
    with connected(job.cluster), Progress(*amount("predicting", remaining)) as progress:
        before, begun, pace = tally.tokens, progress.seconds(), None
        while remaining:
            # Deaths count within one pass: at its end Ray itself kills workers.
            assignment = assignment._replace(ticket=lock.ticket, start=uuid.uuid4().hex)
            steps = make_steps(job, assignment, weights)
            pace = pace or Pace(steps[1].actors[0])
            is_lost = False
            try:
                for record in flow(remaining[:UNITS_AT_ONCE], steps, waiting_bytes(remaining, steps)):
                    losses = 0
                    tally.take(record)
                    pace.take(record)
                    rate = (tally.tokens - before) / max(progress.seconds() - begun, 1e-3)
                    shown = {"target tokens/s": f"{rate:,.0f}"} if tally.tokens else {}
                    progress.update(record["unit_rows"], pace.rate, **shown, errors=f"{tally.errors.total():,}")
                    lock.check()
                    tally.check()
            except WorkLost as loss:
                losses, is_lost = losses + 1, True
                if losses == LOSSES_IN_A_ROW:
                    raise
                logger.warning("predictions: Ray has lost more than it can mend; going on (%s)", loss)
            left = ledger.remaining(units)
            if not is_lost:
                check_recorded(ledger, remaining, left)
            remaining = left


def check_recorded(ledger: Ledger, before: list[Unit], left: list[Unit]) -> None:
    """Raise InputError where none of the units that were worked on has a record: a job must not go on for ever."""
    if len(left) == len(before):
        raise InputError(
            f"out={ledger.out!r} has no record of {len(left):,} units that were worked on; choose a folder that all "
            "machines of the cluster share, or one in an object store"
        )


def check_finished(job: PredictJob, ledger: Ledger) -> None:
    """Raise TooManyErrors where a finished output has more errors than this job allows; its totals tell."""
    totals = ledger.manifest
    Tally(job, [{**totals, "first_error": next(iter(totals["first_errors"]), None)}]).check(is_end=True)


def finish(job: PredictJob, ledger: Ledger, units: list[Unit], assignment: Assignment) -> None:
    """Count what was written, say so, and declare the predictions whole."""
    records = ledger.records(units)
    Tally(job, records).check(is_end=True)
    summary = summarize(records)
    if storage.exists(path := storage.join(ledger.folder, QUALITY)):
        summary["quality"] = storage.read_json(path)
    for place in (ledger.folder, storage.join(ledger.folder, RECORDS)):
        sweep(place, units)
    storage.remove(storage.join(ledger.folder, ATTEMPTS))
    sweep_plans(ledger.folder, ledger.manifest["plan"])
    storage.publish_json(storage.join(ledger.folder, SUMMARY), summary)
    columns = {field.name: str(field.type) for field in assignment.schema}
    if not units:
        storage.publish_table(assignment.place("part-000000-empty.parquet"), assignment.schema.empty_table())
    kept = {name: ledger.manifest[name] for name in ("plan", "texts")}
    trained = {"task": assignment.folder.task, "text": asdict(assignment.folder.text)}
    ledger.finish({**kept, **trained, "schema": columns, **summary})
    listed = ", ".join(f"{count} {kind}" for kind, count in summary["errors"].items())  # type: ignore[attr-defined]
    logger.info("predictions: %d rows, %s -> %s", summary["rows"], listed or "no errors", ledger.out)
