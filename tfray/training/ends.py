"""When training is over."""

from __future__ import annotations

import math

from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig


def is_done(progress: Progress, config: TrainingConfig) -> bool:
    """Say whether the last epoch is over, the last step taken, or the token budget spent."""
    return (
        progress.epoch >= config.epochs
        or progress.step >= (config.max_steps or math.inf)
        or progress.tokens >= (config.token_budget or math.inf)
    )


def is_stale(progress: Progress, config: TrainingConfig) -> bool:
    """Say whether validation has not improved for `patience` times."""
    return bool(config.patience) and progress.stale_validations >= config.patience
