"""Where a run writes: a new place, one to go on with, one to add to, or one beside what it will replace."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import pyarrow.fs

from tfray import storage
from tfray.errors import InputError
from tfray.units.ledger import (
    SUCCESS,
    Ledger,
    differences,
    discard,
    has_manifest,
    refusal,
    refuse_foreign,
    refuse_other_command,
    visible,
)
from tfray.units.lock import LOCK, Lock
from tfray.units.stored import read_plan

Mode = Literal["resume", "new", "overwrite", "append"]
SWAP = "_swap.json"  # says of a place in an object store that what lies beside it is taking it over
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def check_apart(patterns: Sequence[str], paths: Sequence[str], out: str, setting: str) -> None:
    """Raise InputError where what is written would be read as input, or input stands where is written."""
    out = storage.split_options(storage.absolute(out))[0].rstrip("/")
    for pattern in patterns:
        place = storage.split_options(storage.absolute(pattern))[0].rstrip("/")
        written = f"{out}/part-000000-00000000.parquet"
        is_read = written.startswith(f"{place}/") or storage.matches(written.split("/"), place.split("/"))
        if is_read or any(path.startswith(f"{out}/") for path in paths):
            raise InputError(
                f"out={out or '/'!r} and {setting}={pattern!r} lie in each other: output would be read as input; "
                "choose a folder for it elsewhere"
            )


def open_place(out: str, made_from: Mapping[str, object], mode: Mode) -> Ledger:
    """Return the ledger of what a job makes; what lies beside it and is of no use is deleted, nothing is written yet.

    Raises InputError where a mode forbids what is there, and CheckpointMismatch where something else made it.
    """
    ledger = find_place(out, made_from, mode)
    if ledger.replaces and not ledger.is_begun:
        discard(ledger.folder)
    elif ledger.is_finished and not (ledger.replaces or ledger.adds_to):
        discard(aside(ledger.folder))
    return ledger


def find_place(out: str, made_from: Mapping[str, object], mode: Mode) -> Ledger:
    """Return the ledger of what a job makes, and change nothing; raises as open_place does."""
    known = Ledger.of(out, made_from)
    folder = known.folder
    if mode == "new" and visible(folder):
        raise InputError(f"mode='new' and out={folder!r} holds something; choose another folder, or another mode")
    if not has_manifest(folder):
        refuse_foreign(folder)
        if mode == "append":
            raise InputError(f"mode='append' and out={folder!r} holds nothing to add to; leave the mode out")
        return known
    old = known.manifest["made_from"]
    refuse_other_command(folder, old, known.made_from)
    if mode == "append":
        return open_append(known, old)
    changed = differences(old, known.made_from)
    if not changed:
        return known
    if mode == "overwrite":
        return replace(known, folder=aside(folder), replaces=folder)
    raise refusal(folder, changed)


def open_append(ledger: Ledger, old: dict) -> Ledger:
    """Return a ledger of the old input files and the new ones; the old ones need not be named again."""
    inputs = {**old["inputs"], **ledger.made_from["inputs"]}  # type: ignore[dict-item]
    merged = {**ledger.made_from, "inputs": inputs}
    before = {**merged, "inputs": {path: inputs[path] for path in old["inputs"]}}
    if changed := differences(old, before):
        raise refusal(ledger.folder, changed)
    is_larger = len(inputs) > len(old["inputs"])
    if is_larger and not ledger.is_finished and has_remaining(ledger):
        raise InputError(
            f"mode='append' and out={ledger.folder!r} is unfinished; start the job that began it again, then append"
        )
    return Ledger(ledger.folder, merged, adds_to=old if is_larger else None)


def has_remaining(ledger: Ledger) -> bool:
    """Say whether units of a run are not done; where all are, it was stopped while it was taken further."""
    return bool(ledger.remaining(read_plan(ledger.folder, ledger.manifest["plan"])[0]))


def aside(folder: str) -> str:
    """Return the hidden place beside a folder where what replaces it is made."""
    base, options = storage.split_options(folder)
    parent, _, name = base.rstrip("/").rpartition("/")
    if parent.endswith(("/", ":")):  # a whole bucket
        return storage.join(folder, ".next")
    return f"{parent}/.{name}.next{options}"


def take_place(ledger: Ledger) -> None:
    """Let a whole run take the place of what it replaces: at once locally, file by file in an object store.

    Stopped anywhere, it is finished by `mend`, with which every start begins.
    """
    new, folder = ledger.folder, ledger.replaces
    assert folder is not None
    if storage.is_remote(folder):
        storage.publish_json(storage.join(folder, SWAP), {"replaced_by": new})
        copy_over(new, folder)
    else:
        if storage.exists(lock := storage.join(folder, LOCK)):
            storage.copy(lock, storage.join(new, LOCK))  # goes along: the place stays taken until the old run is gone
        if not exchange(new, folder):
            storage.rename(folder, f"{new}.old")
            finish_renames(folder)
    discard(new)


def mend(out: str) -> None:
    """Finish a swap that was stopped in its middle; comes before anything that would make the folder."""
    folder = storage.absolute(out)
    old = f"{aside(folder)}.old"
    if storage.is_remote(folder):
        if storage.exists(storage.join(folder, SWAP)):
            with Lock(folder):
                copy_over(aside(folder), folder)
    elif os.path.isdir(old):
        with Lock(old):
            finish_renames(folder)


def exchange(one: str, other: str) -> bool:
    """Let two local folders change places at once; return whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return bool(rename) and rename(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE) == 0


def finish_renames(folder: str) -> None:
    """Put the new run where the old one was, which has been moved away, and delete that."""
    new, old = aside(folder), f"{aside(folder)}.old"
    whole = [place for place in (new, old) if storage.exists(storage.join(place, SUCCESS))]
    if whole and not has_manifest(folder):
        storage.rename(whole[0], folder)
    discard(old)


def copy_over(new: str, folder: str) -> None:
    """Copy a run's objects over older ones, and delete what is left over of these; done again, it ends the same.

    Without _SUCCESS from the first change to the last, and with the note of the swap from before until after.
    """
    if not storage.exists(storage.join(new, SUCCESS)):
        raise InputError(
            f"out={folder!r} is part of what it was and part of what was to replace it, and that, {new!r}, is gone; "
            "delete the folder, or choose another"
        )
    fs, source = storage.filesystem(new)
    _, target = storage.filesystem(folder)
    storage.remove(storage.join(folder, SUCCESS))
    wanted = relative_files(fs, source) - {SUCCESS, LOCK}
    for name in sorted(wanted):
        storage.copy(storage.entry(new, name), storage.entry(folder, name))
    inside = f"{storage.base_name(source)}/" if source.startswith(f"{target}/") else None
    for name in sorted(relative_files(fs, target) - wanted - {SUCCESS, LOCK, SWAP}):
        if not (inside and name.startswith(inside)):
            storage.remove(storage.entry(folder, name))
    storage.copy(storage.join(new, SUCCESS), storage.join(folder, SUCCESS))
    storage.remove(storage.join(folder, SWAP))


def relative_files(fs: pyarrow.fs.FileSystem, folder: str) -> set[str]:
    """Return the paths of all files below a folder, as seen from it."""
    infos = fs.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {info.path[len(folder.rstrip("/")) + 1 :] for info in infos if info.is_file}
