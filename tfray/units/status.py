"""How far a job is, from its commit log alone: while it runs, after it died, when it is done."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from tfray import storage
from tfray.config import StatusJob
from tfray.errors import InputError
from tfray.units.ledger import (
    MANIFEST,
    RECORDS,
    SUCCESS,
    has_manifest,
    published,
    read_manifest,
    read_record_files,
    without_record,
)
from tfray.units.lock import LOCK, read_owner
from tfray.units.place import aside
from tfray.units.plan import guessed
from tfray.units.stored import read_plan

RECENT_SECONDS = 600.0  # of which the rate is taken


@dataclass(frozen=True)
class Standing:
    """How far one run is; the fields are those of `tfray status --json`."""

    out: str
    state: Literal["running", "finished", "stopped", "died"]
    owner: str | None
    """Who works on it, or died of it."""
    units: int
    units_in_all: int | None
    """None before the run has planned its units."""
    rows: int
    rows_in_all: int | None
    """Of units that are done, what was found there; of the others, as planned."""
    rows_in_all_guessed: bool
    """Those of some unit that is not done are guessed by its size."""
    target_tokens: int
    errors: dict[str, int]
    """Rows with an error, or dropped, by kind."""
    rows_per_second: float | None
    """Over the last minutes in which units were finished."""
    target_tokens_per_second: float | None
    seconds_left: float | None
    """At this rate."""

    def __str__(self) -> str:
        described = {"running": f"running ({self.owner})", "finished": "finished"}
        died = f"died ({self.owner})" if self.owner else "stopped"
        about = "about " if self.rows_in_all_guessed else ""
        lines = [
            f"{self.out}: {described.get(self.state, f'{died}; the same command goes on')}",
            f"units: {self.units:,}" + (f" of {self.units_in_all:,}" if self.units_in_all is not None else ""),
            f"rows: {self.rows:,}" + (f" of {about}{self.rows_in_all:,}" if self.rows_in_all is not None else ""),
            "errors: " + (", ".join(f"{count:,} {kind}" for kind, count in self.errors.items()) or "none"),
        ]
        if self.rows_per_second:
            tokens = f", {self.target_tokens_per_second:,.0f} target tokens/s" if self.target_tokens else ""
            lines.append(f"rate: {self.rows_per_second:,.1f} rows/s{tokens}")
        if self.seconds_left is not None:
            lines.append(f"time left: {duration(self.seconds_left)} at this rate")
        return "\n".join(lines)


def status(job: StatusJob) -> str:
    """Return what a person wants to know of a job's output folder, or the same as one line of JSON."""
    folder = storage.absolute(job.out)
    refuse_training(folder)
    standing, replacement = (look(place, folder) if has_manifest(place) else None for place in (folder, aside(folder)))
    if not standing and not replacement and read_owner(storage.join(folder, LOCK)):
        standing = look(folder, folder)  # it plans
    if not standing and not replacement:
        raise InputError(f"out={folder!r} was not begun by a job (no {MANIFEST} in it); give a job's output folder")
    if job.json:
        return json.dumps((asdict(standing) if standing else {}) | {"replacement": replacement and asdict(replacement)})
    lines = [str(standing)] if standing else []
    return "\n".join([*lines, "what will replace it:", str(replacement)] if replacement else lines)


def refuse_training(folder: str) -> None:
    """Raise InputError for the folder of a training, which has steps in place of units."""
    if has_manifest(folder) and "training" in read_manifest(folder)["made_from"]:
        log = storage.join(folder, "log.jsonl")
        raise InputError(f"out={folder!r} is a training run, which has no units; look at its progress in {log}")


def look(folder: str, locked: str) -> Standing:
    """Return how far a run is; the lock may lie in another folder."""
    manifest = read_manifest(folder) if has_manifest(folder) else {}
    paths = published(storage.join(folder, RECORDS))
    records = read_record_files(paths)
    units = read_plan(folder, manifest["plan"])[0] if "plan" in manifest else None
    left = without_record(paths, units or [])
    rows, rows_left = sum(record["rows"] for record in records), sum(unit.rows for unit in left)
    errors = sum((Counter(record.get("errors") or record.get("rejected") or {}) for record in records), Counter())
    if accounts := manifest.get("corpora", {}).values():  # tokenize is finished: with files that could not be used
        rows = sum(account["rows"] for account in accounts)
        errors = sum((Counter(account["rejected"]) for account in accounts), Counter())
    rate, tokens = recent_rate(records, "rows"), recent_rate(records, "target_tokens")
    return Standing(
        folder,
        *state(folder, locked),
        len(records),
        len(units) if units is not None else None,
        rows,
        rows + rows_left if units is not None else None,
        bool(without_record(paths, guessed(units or []))),
        sum(record.get("target_tokens", 0) for record in records),
        dict(errors.most_common()),
        rate,
        tokens,
        round(rows_left / rate, 1) if rate and left else None,
    )


def state(folder: str, locked: str) -> tuple[Literal["running", "finished", "stopped", "died"], str | None]:
    """Return whether a run is finished, goes on, or has ended too early; and by whom."""
    if storage.exists(storage.join(folder, SUCCESS)):
        return "finished", None
    owner = read_owner(storage.join(locked, LOCK))
    if owner is None:
        return "stopped", None
    return "died" if owner.is_dead else "running", owner.name


def recent_rate(records: list[dict], name: str) -> float | None:
    """Return rows or tokens a second over the last minutes in which units were finished."""
    ends = sorted((record["began"] + record["seconds"], record["began"], record.get(name, 0)) for record in records)
    if not ends:
        return None
    recent = [entry for entry in ends if entry[0] > ends[-1][0] - RECENT_SECONDS]
    span = recent[-1][0] - min(began for _, began, _ in recent)
    return round(sum(count for _, _, count in recent) / span, 1) if span > 0 else None


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86_400 else f"{seconds / 86_400:.1f} days"
