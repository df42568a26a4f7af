"""Where a run writes: a new place, one to go on with, one to add to, or one beside what it will replace."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from typing import Literal

import pyarrow.fs

from tfray import storage
from tfray.errors import InputError
from tfray.units.ledger import (
    MANIFEST,
    SUCCESS,
    Ledger,
    clear,
    differences,
    has_manifest,
    refuse_unless,
    visible,
)

Mode = Literal["resume", "new", "overwrite", "append"]
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def open_place(out: str, made_from: Mapping[str, object], mode: Mode) -> Ledger:
    """Return the ledger of what a job makes; nothing is written yet, apart from clearing what was never whole.

    Raises InputError where a mode forbids what is there, and CheckpointMismatch where something else made it.
    """
    folder = storage.absolute(out)
    made: dict[str, object] = json.loads(json.dumps(made_from))  # as it comes back: tuples become lists
    mend(folder)
    if mode == "new" and visible(folder):
        raise InputError(f"mode='new' and out={folder!r} holds something; choose another folder, or another mode")
    if not has_manifest(folder):
        if visible(folder):
            raise InputError(f"out={folder!r} holds files of something else; choose an empty or new folder")
        if mode == "append":
            raise InputError(f"mode='append' and out={folder!r} holds nothing to add to; leave the mode out")
        return Ledger(folder, made)
    known = Ledger(folder, made)
    old = known.manifest["made_from"]
    if mode == "append":
        return open_append(known, old)
    changed = differences(old, made)
    if not changed:
        if known.is_finished:
            storage.remove(aside(folder))
        return known
    if mode == "overwrite":
        return open_aside(folder, made)
    refuse_unless(False, folder, changed)
    return known


def open_append(ledger: Ledger, old: dict) -> Ledger:
    """Return a ledger of the old input files and the new ones; the old ones need not be named again."""
    inputs = {**old["inputs"], **ledger.made_from["inputs"]}  # type: ignore[dict-item]
    merged = {**ledger.made_from, "inputs": inputs}
    before = {**merged, "inputs": {path: inputs[path] for path in old["inputs"]}}
    if changed := differences(old, before):
        refuse_unless(False, ledger.folder, changed)
    is_larger = len(inputs) > len(old["inputs"])
    if is_larger and not ledger.is_finished:
        raise InputError(
            f"mode='append' and out={ledger.folder!r} is unfinished; start the job that began it again, then append"
        )
    return Ledger(ledger.folder, merged, adds_to=old if is_larger else None)


def open_aside(folder: str, made: dict[str, object]) -> Ledger:
    """Return the ledger of a hidden folder beside, which takes the folder's place in the end."""
    ledger = Ledger(aside(folder), made, replaces=folder)
    if has_manifest(ledger.folder) and differences(ledger.manifest["made_from"], made):
        clear(ledger.folder)
        storage.remove(storage.join(ledger.folder, MANIFEST))
    return ledger


def aside(folder: str) -> str:
    """Return the hidden place beside a folder where what replaces it is made."""
    base, mark, options = folder.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    if parent.endswith(("/", ":")):  # a whole bucket
        return storage.join(folder, ".next")
    return f"{parent}/.{name}.next{mark}{options}"


def take_place(ledger: Ledger) -> None:
    """Let a whole run take the place of what it replaces: at once locally, file by file in an object store."""
    new, old = ledger.folder, ledger.replaces
    assert old is not None
    if storage.is_remote(old):
        copy_over(new, old)
    elif not exchange(new, old):
        os.rename(old, f"{new}.old")  # a kill here is mended at the next start
        os.rename(new, old)
        shutil.rmtree(f"{new}.old")
    storage.remove(new)


def exchange(one: str, other: str) -> bool:
    """Let two local folders change places at once; return whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return bool(rename) and rename(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE) == 0


def mend(folder: str) -> None:
    """Finish an exchange of local folders that was killed between its two halves."""
    old = f"{aside(folder)}.old"
    if not storage.is_remote(folder) and os.path.isdir(old):
        if not os.path.isdir(folder):
            os.rename(old, folder)
        else:
            shutil.rmtree(old)


def copy_over(new: str, old: str) -> None:
    """Copy a run's objects over older ones; the manifest and then _SUCCESS come last, and what is left over goes."""
    fs, source = storage.filesystem(new)
    _, target = storage.filesystem(old)
    storage.remove(storage.join(old, SUCCESS))
    before, wanted = relative_files(fs, target), relative_files(fs, source)
    for name in sorted(wanted, key=lambda name: ((MANIFEST, SUCCESS).index(name) + 1 if name in (MANIFEST, SUCCESS)
                                                 else 0, name)):  # fmt: skip
        fs.copy_file(f"{source}/{name}", f"{target}/{name}")
    inside = storage.base_name(source) + "/" if source.startswith(f"{target}/") else None
    for name in before - wanted:
        if not (inside and name.startswith(inside)) and not name.startswith("_lock"):
            fs.delete_file(f"{target}/{name}")


def relative_files(fs: pyarrow.fs.FileSystem, folder: str) -> set[str]:
    """Return the paths of all files below a folder, as seen from it."""
    infos = fs.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {info.path[len(folder.rstrip("/")) + 1 :] for info in infos if info.is_file}
