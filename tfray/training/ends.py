"""When training is over."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfray.config import TrainingConfig, TrainJob

if TYPE_CHECKING:
    from tfray.batches.count import EpochCount
    from tfray.checkpoint.state import Progress


def is_done(progress: Progress, config: TrainingConfig) -> bool:
    """Say whether the last epoch is over, the last step taken, or the token budget spent."""
    return (
        progress.epoch >= config.epochs
        or progress.step >= (config.max_steps or math.inf)
        or progress.tokens >= (config.token_budget or math.inf)
    )


def count_steps(config: TrainingConfig, each: EpochCount, order_since: Sequence[int] = (0, 0, 0, 0)) -> int:
    """Return about how many steps training has: those of an epoch times the epochs, or fewer where max_steps or the
    token budget ends it earlier; of a data order that was changed (see Progress), those done before and those left."""
    steps, epoch, pool, tokens = order_since
    ends = [(config.epochs - epoch - pool / each.pools) * each.steps]
    if config.token_budget:
        ends.append((config.token_budget - tokens) / each.target_tokens * each.steps)
    return min(steps + math.ceil(min(ends)), config.max_steps or sys.maxsize)


def most_epochs(progress: Progress, config: TrainingConfig, pairs: int, most_in_step: int = sys.maxsize) -> int:
    """Return how many epochs there may be: each after the present one has `pairs` at least, of which a step holds
    `most_in_step` at most, and as many target tokens, since a target has one at least."""
    ends = [
        (config.max_steps, progress.step, math.ceil(pairs / most_in_step)),
        (config.token_budget, progress.tokens, pairs),
    ]
    left = [math.ceil((end - done) / each) for end, done, each in ends if end]
    return min([config.epochs, *(progress.epoch + 1 + epochs for epochs in left)])


def is_stale(progress: Progress, config: TrainingConfig) -> bool:
    """Say whether validation has not improved for `patience` times."""
    return bool(config.patience) and progress.stale_validations >= config.patience


def lacks_average(job: TrainJob, manifest: dict) -> bool:
    """Say whether a finished run has no mean of as many checkpoints as are wanted now."""
    wanted = job.training.average_checkpoints
    return wanted > 0 and manifest.get("average_checkpoints") != wanted
