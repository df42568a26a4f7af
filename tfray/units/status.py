"""How far a job is, from its commit log alone: while it runs, after it died, when it is done."""

from __future__ import annotations

import time
from collections import Counter

from tfray import storage
from tfray.config import StatusJob
from tfray.errors import InputError
from tfray.units.ledger import MANIFEST, RECORDS, SUCCESS, has_manifest, published, read_record_files
from tfray.units.lock import LOCK, read_owner
from tfray.units.place import aside
from tfray.units.stored import read_plan

RECENT_SECONDS = 600.0  # of which the rate is taken


def status(job: StatusJob) -> str:
    """Return what a person wants to know of a job's output folder."""
    folder = storage.absolute(job.out)
    if not has_manifest(folder) and not has_manifest(aside(folder)):
        raise InputError(f"out={folder!r} was not begun by a job (no {MANIFEST} in it); give a job's output folder")
    lines = describe(folder, folder) if has_manifest(folder) else []
    if has_manifest(aside(folder)):
        lines += ["what will replace it:", *describe(aside(folder), folder)]
    return "\n".join(lines)


def describe(folder: str, locked: str) -> list[str]:
    """Return lines about one run; the lock may lie in another folder."""
    manifest = storage.read_json(storage.join(folder, MANIFEST))
    records = read_record_files(published(storage.join(folder, RECORDS)))
    units = read_plan(folder, manifest["plan"])[0] if "plan" in manifest else None
    rows, total = sum(record["rows"] for record in records), sum(unit.rows for unit in units or [])
    errors = sum((Counter(record.get("errors") or record.get("rejected") or {}) for record in records), Counter())
    rate = recent_rate(records)
    lines = [
        f"{folder}: {state(folder, locked)}",
        f"units: {len(records):,}" + (f" of {len(units):,}" if units is not None else ""),
        f"rows: {rows:,}" + (f" of {total:,}" if units is not None else ""),
        "errors: " + (", ".join(f"{count:,} {kind}" for kind, count in errors.most_common()) or "none"),
    ]
    if rate:
        lines.append(f"rate: {rate:,.1f} rows/s")
        if units is not None and len(records) < len(units):
            lines.append(f"time left: {duration(max(0, total - rows) / rate)} at this rate")
    return lines


def state(folder: str, locked: str) -> str:
    """Return whether a run is finished, goes on, or has ended too early."""
    if storage.exists(storage.join(folder, SUCCESS)):
        return "finished"
    owner = read_owner(storage.join(locked, LOCK))
    if owner is None:
        return "stopped; the same command goes on"
    if owner.is_dead:
        return f"died ({owner.name}); the same command goes on"
    return f"running ({owner.name})"


def recent_rate(records: list[dict]) -> float | None:
    """Return rows a second over the last minutes in which units were finished."""
    ends = sorted((record["began"] + record["seconds"], record["began"], record["rows"]) for record in records)
    if not ends:
        return None
    recent = [entry for entry in ends if entry[0] > ends[-1][0] - RECENT_SECONDS]
    span = recent[-1][0] - min(began for _, began, _ in recent)
    return sum(rows for _, _, rows in recent) / span if span > 0 else None


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86_400 else f"{seconds / 86_400:.1f} days"
