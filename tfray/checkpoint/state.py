"""What a checkpoint is: `checkpoints/step-00000500/` holds parts with tensors and, written last, state.json.

A checkpoint without its state.json does not exist, so a kill while writing leaves the one before. state.json
names each part with its size and hash, and itself carries a hash, so that whatever was damaged is noticed. Only
safetensors and JSON: nothing is unpickled, and a checkpoint from elsewhere runs no code.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import xxhash

from tfray import storage
from tfray.batches.order import Cursor
from tfray.checkpoint.group import Group
from tfray.errors import CheckpointMismatch, StorageFailure

logger = logging.getLogger(__name__)

CHECKPOINTS, STATE = "checkpoints", "state.json"
FORMAT = 2

Pending = Literal["", "validation", "scores"]


@dataclass(frozen=True)
class Progress:
    """How far training has come."""

    step: int = 0
    """Steps done, those that were skipped included."""
    epoch: int = 0
    pool: int = 0
    step_in_pool: int = 0
    """Epoch, pool and step are the cursor: the place in the data order of the next step."""
    tokens: int = 0
    """Target tokens trained on."""
    updates: int = 0
    """Updates of the weights, which is the optimizer's own count."""
    skipped: int = 0
    """Steps that were skipped for a spike."""
    spikes: dict = field(default_factory=dict)
    """State of the spike guard, as JSON has it."""
    best_score: float | None = None
    """The chosen metric at the best validation, as it was measured; None before the first."""
    best_step: int = 0
    stale_validations: int = 0
    """Validations since the best."""
    seconds: float = 0.0
    """Time spent training, over all starts."""
    order: dict = field(default_factory=dict)
    """What the cursor counts by (batches/order.py)."""
    order_since: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """The step, epoch, pool and tokens where that was last another: an epoch has had other steps before."""
    best_metric: str = ""
    """By which the best score is the best."""
    judged_by: str = ""
    """Fingerprint of the validation data, and of how they are decoded, on which it was found."""
    precision: str = ""
    """In which training computes: bf16 or fp32."""
    pending: Pending = ""
    """What was still to be found of these very weights when they were saved."""
    awaited: int = 0
    """Step of earlier weights whose scores were still to come from beside then; 0: of none."""

    @property
    def cursor(self) -> Cursor:
        """The place in the data order of the next step."""
        return Cursor(self.epoch, self.pool, self.step_in_pool)


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where it lies."""

    part: str
    """Name of the file."""
    start: int
    """Its first byte there."""
    offsets: Sequence[int]
    shape: Sequence[int]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in one or more pieces that fill it."""

    dtype: str
    """As safetensors names it."""
    shape: Sequence[int]
    pieces: list[Piece]


@dataclass(frozen=True)
class Saved:
    """What state.json says."""

    progress: Progress
    score: float | None
    parts: dict[str, Part]
    tensors: dict[str, StoredTensor]

    def to_json(self) -> dict:
        """Return the content of state.json."""
        content = {"format_version": FORMAT, **asdict(self)}
        return {**content, "xxh3": content_hash(content)}

    @staticmethod
    def from_json(content: dict) -> Saved:
        """Return what a state.json says; raises ValueError, KeyError or TypeError where it is damaged."""
        content = dict(content)
        version, digest = content.pop("format_version"), content.pop("xxh3")
        if version != FORMAT:
            raise ValueError(f"{STATE} has format {version}, this version of tfray reads {FORMAT}")
        if content_hash({"format_version": version, **content}) != digest:
            raise ValueError(f"{STATE} is not what was written: its checksum differs")
        if any("/" in name for name in content["parts"]):
            raise ValueError(f"{STATE} names parts outside its folder")
        tensors = {
            name: StoredTensor(tensor["dtype"], tensor["shape"], [Piece(**piece) for piece in tensor["pieces"]])
            for name, tensor in content["tensors"].items()
        }
        parts = {name: Part(**part) for name, part in content["parts"].items()}
        return Saved(Progress(**content["progress"]), content["score"], parts, tensors)


def content_hash(content: dict) -> str:
    """Return the hash of a JSON object, whatever the order of its names."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def checkpoint_folder(out: str, step: int) -> str:
    """Return the place of a step's checkpoint."""
    return storage.join(storage.join(out, CHECKPOINTS), f"step-{step:08d}")


def step_of(folder: str) -> int:
    """Return the step of a checkpoint's place."""
    return int(storage.base_name(folder).removeprefix("step-"))


def read_state(folder: str) -> Saved:
    """Return what a checkpoint's state.json says; raises ValueError where it is damaged."""
    try:
        return Saved.from_json(storage.read_json(storage.join(folder, STATE)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{STATE} is damaged: {type(error).__name__} {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{STATE} is damaged: {error}") from error


def begun_checkpoints(out: str) -> list[str]:
    """Return the folders of all checkpoints, whole, damaged or unfinished, oldest first."""
    folders = storage.list_folders(storage.join(out, CHECKPOINTS))
    return [folder for folder in folders if storage.base_name(folder).startswith("step-")]


def published_checkpoints(out: str) -> list[str]:
    """Return the folders of the checkpoints that have their state.json, damaged or not, oldest first."""
    return [folder for folder in begun_checkpoints(out) if storage.exists(storage.join(folder, STATE))]


def complete_checkpoints(out: str) -> list[str]:
    """Return the folders of the checkpoints whose files are there in their full size, oldest first."""
    return [folder for folder in published_checkpoints(out) if is_complete(folder)]


def is_complete(folder: str) -> bool:
    """Say whether a checkpoint's files are there in their full size; what is in them is not looked at."""
    try:
        parts = read_state(folder).parts
    except (OSError, ValueError):
        return False
    return not any(size_problem(folder, name, part) for name, part in parts.items())


def size_problem(folder: str, name: str, part: Part) -> str | None:
    """Return what is wrong with a part, by its size alone."""
    info = storage.file_info(storage.join(folder, name))
    if not info.is_file:
        return f"{name} is missing"
    return None if info.size == part.bytes else f"{name} has {info.size:,} bytes in place of {part.bytes:,}"


def part_problem(folder: str, name: str, part: Part) -> str | None:
    """Return what is wrong with a part, read to its end; raises StorageFailure where that cannot be known."""
    digest = xxhash.xxh3_128()
    try:
        if problem := size_problem(folder, name, part):
            return problem
        for chunk in storage.read_chunks(storage.join(folder, name)):
            digest.update(chunk)
    except OSError as error:
        return f"{name} cannot be read: {error}"
    return None if digest.hexdigest() == part.xxh3 else f"{name} is not what was written: its checksum differs"


def verify(folder: str, group: Group) -> Saved | str:
    """Return what a whole checkpoint's state.json says, or what is wrong with the checkpoint.

    All its bytes are read once, by the workers together, and all come to the same verdict; all raise StorageFailure
    where one of them cannot know.
    """
    saved, problems = own_problems(folder, group)
    found = [problem for each in group.gather(problems) for problem in each]
    for problem in found:
        if isinstance(problem, StorageFailure):
            raise problem
    return saved if saved and not found else str(found[0])


def own_problems(folder: str, group: Group) -> tuple[Saved | None, list[str | StorageFailure]]:
    """Return what state.json says, and what is wrong with this worker's share of the parts."""
    try:
        saved = read_state(folder)
        own = sorted(saved.parts.items())[group.rank :: group.workers]
        return saved, [problem for name, part in own if (problem := part_problem(folder, name, part))]
    except StorageFailure as failure:
        return None, [failure]
    except (OSError, ValueError) as error:
        return None, [str(error)]


def newest_whole(out: str, group: Group, unusable: dict[str, str] | None = None) -> tuple[str, Saved] | None:
    """Return the newest whole checkpoint; None where there is none yet. Of several workers all must ask.

    Each damaged one is named in a warning, once; `unusable` holds those known before, and why.
    """
    unusable = {} if unusable is None else unusable
    while True:
        # Looked up anew each time, for another process may publish and clear away meanwhile.
        folders = group.first(lambda: published_checkpoints(out))
        left = [folder for folder in folders if folder not in unusable]
        if not left:
            break
        started = time.monotonic()
        verdict = verify(left[-1], group)
        if isinstance(verdict, Saved):
            total = sum(part.bytes for part in verdict.parts.values())
            logger.info("%s verified: %d bytes in %.2f s", left[-1], total, time.monotonic() - started)
            return left[-1], verdict
        note_damage(unusable, left[-1], verdict)
    if folders:
        raise CheckpointMismatch(
            f"all {len(folders)} checkpoints of {out!r} are damaged: "
            + "; ".join(f"{storage.base_name(folder)}: {unusable[folder]}" for folder in folders)
            + f"; bring one back from a copy, or delete {storage.join(out, CHECKPOINTS)!r} to train from the beginning"
        )
    return None


def note_damage(unusable: dict[str, str], folder: str, problem: str) -> None:
    """Remember that a checkpoint cannot be used, and say so."""
    unusable[folder] = problem
    logger.warning("checkpoint %r is damaged and is passed over: %s; the one before is used", folder, problem)


def newest_progress(out: str) -> Progress:
    """Return how far the newest whole checkpoint is, all its bytes verified; the beginning where there is none.

    Reads the whole checkpoint (about a second a gigabyte on a local disk) and needs no process group.
    """
    found = newest_whole(out, Group())
    return found[1].progress if found else Progress()
