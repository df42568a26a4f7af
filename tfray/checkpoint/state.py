"""Training state <-> files: `checkpoints/step-00000500/` holds tensors and, written last, state.json.

A checkpoint without its state.json does not exist, so a kill while writing leaves the one before.
Only safetensors and JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import safetensors
import safetensors.torch
from torch import Tensor

from tfray import storage
from tfray.batches.feed import Cursor
from tfray.errors import CheckpointMismatch

CHECKPOINTS, TENSORS, STATE = "checkpoints", "state.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    pool: int = 0
    step_in_pool: int = 0
    """Epoch, pool and step are the cursor: the place in the data order of the next step."""
    best_loss: float = float("inf")
    best_step: int = 0
    stale_validations: int = 0
    """Validations since the best."""
    seconds: float = 0.0
    """Time spent training, over all starts."""

    @property
    def cursor(self) -> Cursor:
        """The place in the data order of the next step."""
        return Cursor(self.epoch, self.pool, self.step_in_pool)


def save_checkpoint(out: str, progress: Progress, tensors: dict[str, Tensor], keep: int) -> None:
    """Write a checkpoint and delete all but the newest `keep`, and what kills have left unfinished."""
    folder = storage.join(storage.join(out, CHECKPOINTS), f"step-{progress.step:08d}")
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    storage.publish_bytes(storage.join(folder, TENSORS), data)
    storage.publish_json(storage.join(folder, STATE), {**asdict(progress), "bytes": len(data)})
    kept = complete_checkpoints(out)[-keep:]
    for old in storage.list_folders(storage.join(out, CHECKPOINTS)):
        if old not in kept:
            storage.remove(storage.join(old, STATE))
            storage.remove(old)


def newest_progress(out: str) -> Progress:
    """Return how far the newest checkpoint is; the beginning where there is none."""
    checkpoints = complete_checkpoints(out)
    if not checkpoints:
        return Progress()
    state = storage.read_json(storage.join(checkpoints[-1], STATE))
    return Progress(**{name: value for name, value in state.items() if name != "bytes"})


def load_tensors(out: str, progress: Progress) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by name."""
    path = storage.join(storage.join(out, CHECKPOINTS), f"step-{progress.step:08d}/{TENSORS}")
    try:
        return safetensors.torch.load(storage.read_bytes(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointMismatch(
            f"checkpoint {path!r} cannot be read: {error}; delete its folder to use the one before"
        ) from error


def complete_checkpoints(out: str) -> list[str]:
    """Return the folders of finished checkpoints, oldest first."""
    return [folder for folder in storage.list_folders(storage.join(out, CHECKPOINTS)) if is_complete(folder)]


def is_complete(folder: str) -> bool:
    """Say whether a checkpoint's files are both there and whole."""
    try:
        size = storage.read_json(storage.join(folder, STATE))["bytes"]
    except (OSError, json.JSONDecodeError, KeyError):
        return False
    return storage.file_size(storage.join(folder, TENSORS)) == size
