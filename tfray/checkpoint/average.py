"""The mean of several checkpoints' weights, which often translates better than any of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from tfray.checkpoint.checkpoints import best_folders, planned_checkpoints, read_weights, scored_folders
from tfray.checkpoint.state import complete_checkpoints
from tfray.errors import CheckpointMismatch, InputError

logger = logging.getLogger(__name__)


def average_checkpoints(out: str, count: int, of_best: bool, every: int = 1) -> dict[str, Tensor]:
    """Return the mean weights of a run's newest `count` checkpoints of every so many steps, or of its best, by the
    Transformer's names."""
    folders = chosen_checkpoints(out, count, of_best, every)
    if 0 < len(folders) < count:
        logger.warning(
            "the mean is of %d checkpoints in place of training.average_checkpoints=%d: there are no more%s",
            *(len(folders), count, "" if of_best or every == 1 else f", of every {every} steps"),
        )
    return mean_weights(folders, read_weights)


def chosen_checkpoints(out: str, count: int, of_best: bool, every: int = 1) -> list[str]:
    """Return the folders of a run's newest `count` checkpoints, or of the best ones; fewer where there are fewer.

    Where no validation has given any a score, the newest are the best.
    """
    folders = complete_checkpoints(out)
    best = best_folders(scored_folders(folders), count) if of_best else []
    return best or planned_checkpoints(folders, every)[-count:]


def mean_weights(folders: list[str], read: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the tensors that `read` gives of each folder, by name; two of each are held at a time.

    A damaged one is left out, and named in a warning.
    """
    mean: dict[str, Tensor] = {}
    taken: list[str] = []
    for folder in folders:
        try:
            weights = read(folder)
        except CheckpointMismatch as error:
            logger.warning("the mean of %d checkpoints is made without one: %s", len(folders), error)
            continue
        taken.append(folder)
        mean = mean or weights
        if weights.keys() != mean.keys():
            raise InputError(f"checkpoints {taken[0]!r} and {folder!r} are of different models; average those of one")
        for name, weight in mean.items():
            weight.lerp_(weights[name], 1 / len(taken))  # what is the same everywhere stays the same to the bit
    if not taken:
        raise InputError(
            f"training.average_checkpoints: there is no {'whole ' if folders else ''}checkpoint of which to take the "
            "mean; lower training.checkpoint_every, or set training.average_checkpoints to 0"
        )
    return mean
