"""The commit log of a job over units: what made the output, which units are done, how it ended.

A unit is done when its record stands in `_units/`, which is written after all that the unit made;
resume is the difference of two lists of names. `_manifest.json` says what the output is made from, and
`_SUCCESS` that all of it is there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum, auto

from tfray import storage
from tfray.config.files import dump_settings
from tfray.errors import CheckpointMismatch, InputError
from tfray.units.files import THREADS
from tfray.units.plan import Unit

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
SETTINGS = "_config.yaml"
RECORDS = "_units"
UNIT_FILE = re.compile(r"(part-\d{6,}-[0-9a-f]{8})\.(json|parquet)")
COMMANDS = {"corpus": "tfray tokenize", "training": "tfray train", "generation": "tfray predict"}  # by what is noted
MESSAGE_WIDTH = 120  # of a value in a message


@dataclass(frozen=True)
class Ledger:
    """An output folder and what it is made from."""

    folder: str
    made_from: dict[str, object]
    replaces: str | None = None
    """The folder whose place it takes once it is whole."""
    adds_to: dict | None = None
    """What a finished output is made from, to which this run adds."""

    @classmethod
    def of(cls, folder: str, made_from: Mapping[str, object]) -> Ledger:
        """Return the ledger of a folder."""
        return cls(storage.absolute(folder), json.loads(json.dumps(made_from)))  # as it comes back: tuples become lists

    @property
    def out(self) -> str:
        """The folder where people find the output."""
        return self.replaces or self.folder

    @property
    def is_finished(self) -> bool:
        return storage.exists(storage.join(self.folder, SUCCESS))

    @property
    def is_begun(self) -> bool:
        """A job has begun it, and from the very same things."""
        return has_manifest(self.folder) and not differences(self.manifest["made_from"], self.made_from)

    @property
    def manifest(self) -> dict:
        return read_manifest(self.folder)

    def remaining(self, units: list[Unit]) -> list[Unit]:
        """Return the units that are not recorded yet."""
        return unrecorded(storage.join(self.folder, RECORDS), units)

    def records(self, units: list[Unit]) -> list[dict]:
        """Return the records of finished units, in the units' order."""
        return read_records(storage.join(self.folder, RECORDS), units)

    def begin(self, **known: object) -> None:
        """Record what the output is made from."""
        storage.publish_json(storage.join(self.folder, MANIFEST), self.described(known))

    def finish(self, summary: dict[str, object]) -> None:
        """Record the totals and declare the output whole."""
        storage.publish_json(storage.join(self.folder, MANIFEST), self.described(summary))
        storage.publish_bytes(storage.join(self.folder, SUCCESS), b"")

    def described(self, known: Mapping[str, object]) -> dict[str, object]:
        return {"format_version": 1, "made_from": self.made_from, **known}


class Found(Enum):
    """What a job finds where it is to write."""

    NOTHING = auto()
    THE_SAME = auto()
    """Made from the very same things."""
    CHANGED = auto()
    """Made from others, and the job may go on with it."""
    OUTDATED = auto()
    """Made from others, and to be made anew."""


def open_ledger(
    folder: str, made_from: Mapping[str, object], overwrite: bool, allow_change: Sequence[str] | None = None
) -> Ledger:
    """Return the ledger of a new folder, or of one made from the very same things.

    Raises CheckpointMismatch naming the setting that differs, unless it is in `allow_change` (the manifest then
    records the new value; None: the job has no such option) or `overwrite` clears the folder, and InputError for a
    folder that no job began: what is in there is never deleted.
    """
    storage.check_writable(storage.absolute(folder))
    ledger, found = find_ledger(folder, made_from, overwrite, allow_change)
    if found is Found.THE_SAME:
        return ledger
    if found is Found.CHANGED:
        storage.remove(storage.join(ledger.folder, SUCCESS))  # what was finished goes on
    elif found is Found.OUTDATED:
        clear(ledger.folder)
    ledger.begin()
    return ledger


def find_ledger(
    folder: str, made_from: Mapping[str, object], overwrite: bool, allow_change: Sequence[str] | None = None
) -> tuple[Ledger, Found]:
    """Return what open_ledger would open, and what it is; nothing changes. Raises as that does."""
    ledger = Ledger.of(folder, made_from)
    folder = ledger.folder
    before = ledger.manifest["made_from"] if has_manifest(folder) else None
    check_names(allow_change or (), [*flat(ledger.made_from), *flat(before or {})])
    if before is None:
        refuse_foreign(folder)
        return ledger, Found.NOTHING
    refuse_other_command(folder, before, ledger.made_from)
    changed = differences(before, ledger.made_from)
    if not changed:
        return ledger, Found.THE_SAME
    if all(name in (allow_change or ()) for name in changed):
        return ledger, Found.CHANGED
    if overwrite:
        return ledger, Found.OUTDATED
    raise refusal(folder, changed, allow_change)


def refuse_foreign(folder: str) -> None:
    """Raise InputError where a folder that no job began holds something."""
    if visible(folder):
        raise InputError(f"out={folder!r} holds files of something else; choose an empty or new folder")


def refuse_other_command(folder: str, old: Mapping[str, object], new: Mapping[str, object]) -> None:
    """Raise InputError where another command made a folder: no --overwrite may delete what it holds."""
    made, wanted = (next((COMMANDS[key] for key in COMMANDS if key in made_from), None) for made_from in (old, new))
    if None not in (made, wanted) and made != wanted:
        raise InputError(f"out={folder!r} was written by `{made}`; choose another folder, or delete it yourself")


def record_unit(folder: str, unit: Unit, record: dict) -> None:
    """Commit a unit: from now on it is done, and is not done again."""
    storage.publish_bytes(storage.join(folder, f"{unit.stem}.json"), json.dumps(record).encode())


def unrecorded(folder: str, units: list[Unit]) -> list[Unit]:
    """Return the units that have no record in a folder."""
    return without_record(storage.list_files(folder), units)


def without_record(paths: list[str], units: list[Unit]) -> list[Unit]:
    """Return the units that have none of the records at some paths."""
    done = {storage.base_name(path) for path in paths}
    return [unit for unit in units if f"{unit.stem}.json" not in done]


def read_records(folder: str, units: list[Unit]) -> list[dict]:
    """Return the units' records in a folder, in the units' order."""
    return read_record_files([storage.join(folder, f"{unit.stem}.json") for unit in units])


def read_record_files(paths: list[str]) -> list[dict]:
    """Return records by their paths."""
    if not any(map(storage.is_remote, paths[:1])):  # threads would take turns, and take four times as long
        return [*map(storage.read_json, paths)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(storage.read_json, paths)]


def store_settings(folder: str, job: object) -> None:
    """Write a job's resolved settings beside what they make; `--config` takes the file again."""
    settings = json.loads(json.dumps(asdict(job)))  # type: ignore[call-overload]
    storage.publish_text(storage.join(folder, SETTINGS), dump_settings(settings))


def has_manifest(folder: str) -> bool:
    """Say whether a folder was begun by a job."""
    return storage.exists(storage.join(folder, MANIFEST))


def read_manifest(folder: str) -> dict:
    """Return what a folder's manifest says; raises InputError where it is damaged."""
    path = storage.join(folder, MANIFEST)
    try:
        manifest = storage.read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("made_from"), dict):
            raise ValueError("it does not say what its folder was made from")
    except ValueError as error:
        raise InputError(f"{path!r} is damaged: {error}; copy its folder again, whole, or make it anew") from error
    return manifest


def visible(folder: str) -> list[str]:
    """Return the files and folders in a folder, but not what a job leaves that was killed before it began."""
    files = [path for path in published(folder) if not storage.base_name(path).startswith(("_lock", "_plan"))]
    return [*files, *(place for place in storage.list_folders(folder) if storage.base_name(place)[0] != ".")]


def published(folder: str) -> list[str]:
    """Return the files in a folder that appeared whole; what a kill left half written is hidden."""
    return [path for path in storage.list_files(folder) if storage.base_name(path)[0] != "."]


def sweep(folder: str, units: list[Unit] | None = None) -> None:
    """Delete what kills left half written in a folder; given all units, also what belongs to none of them."""
    own = None if units is None else {unit.stem for unit in units}
    for path in storage.list_files(folder):
        of_unit = UNIT_FILE.fullmatch(storage.base_name(path))
        if storage.is_temporary(path) or (own is not None and of_unit and of_unit[1] not in own):
            storage.remove(path)


def clear(folder: str) -> None:
    """Delete what a job wrote, but not its manifest: a clearing that is killed must be taken up again."""
    storage.remove(storage.join(folder, SUCCESS))  # first: what is half deleted is not whole
    for place in visible(folder):
        if storage.base_name(place) != MANIFEST:
            storage.remove(place)


def discard(folder: str) -> None:
    """Delete a run; half deleted, it is neither whole nor a run with which a later start would go on."""
    storage.remove(storage.join(folder, SUCCESS))
    storage.remove(storage.join(folder, MANIFEST))
    storage.remove(folder)


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError where a setting that may change is none that the output follows from."""
    for name in names:
        if name not in known:
            meant = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean {meant[0]}?" if meant else f"; those are {', '.join(known)}"
            raise InputError(f"allow_change={name!r} is no setting that the result follows from{hint}")


def refusal(folder: str, changed: Mapping[str, str], allow_change: Sequence[str] | None = None) -> CheckpointMismatch:
    """Return the error for a folder that was made with other settings, and what may be done about it."""
    listed = "; ".join([*changed.values()][:5])
    other = [name for name in changed if name not in (allow_change or ())]
    insist = "" if allow_change is None else ", go on with the new with " + insisting(other)
    return CheckpointMismatch(
        f"out={folder!r} was made from something else: {listed}; choose another folder, go back "
        f"to the old setting{insist}, or make it anew with --overwrite (predict: --mode overwrite)"
    )


def insisting(names: list[str]) -> str:
    """Return the options that let settings change."""
    return " ".join(f"--allow_change {name}" for name in names)


def flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return a line for each setting that differs, by its dotted name."""
    lines: dict[str, str] = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines |= differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines[prefix + name] = f"{prefix}{name} was {shorten(before)}, is now {shorten(after)}"
    return lines


def shorten(value: object) -> str:
    """Return a value's text, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= MESSAGE_WIDTH else text[: MESSAGE_WIDTH - 3] + "..."
