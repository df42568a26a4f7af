"""Which validation is the best so far, and how many have come since: early stopping and best/ go by this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tfray.config import TrainingConfig, require
from tfray.errors import InputError
from tfray.tokens.shards import TokenFolder

if TYPE_CHECKING:
    from tfray.checkpoint.state import Progress

METRICS = {"translation": ("loss", "bleu", "chrf"), "classification": ("loss", "accuracy")}
"""What validation measures, by task; of the loss less is better, of the others more."""


def judged(progress: Progress, step: int, found: Mapping[str, float]) -> tuple[Progress, bool]:
    """Return progress after a validation of this step's weights, and whether it is the best so far.

    Without any validation data (nothing is found) the newest is the best; a finding without the metric, whose
    part with it is still to come, changes nothing.
    """
    if not found:
        return replace(progress, best_step=step, stale_validations=0), True
    if progress.best_metric not in found:
        return progress, False
    score = found[progress.best_metric]
    if is_better(progress, score):
        return replace(progress, best_score=score, best_step=step, stale_validations=0), True
    return replace(progress, stale_validations=progress.stale_validations + 1), False


def is_better(progress: Progress, score: float) -> bool:
    """Say whether a score beats the best so far; one that is not finite never does."""
    if not math.isfinite(score):
        return False
    if progress.best_score is None or not math.isfinite(progress.best_score):
        return True
    return score < progress.best_score if progress.best_metric == "loss" else score > progress.best_score


def check_metric(config: TrainingConfig, tokens: TokenFolder) -> None:
    """Raise InputError where something is to go by what validation does not measure."""
    if not tokens.has_split("valid"):
        for name in ("patience", "keep_best_checkpoints"):
            require(
                not getattr(config, name),
                f"training.{name}",
                getattr(config, name),
                f"goes by validations, and {tokens.folder!r} has no data for them; tokenize with corpus.valid or "
                "corpus.valid_share, or leave it 0",
            )
    metric = config.best_metric
    fitting = METRICS[tokens.task]
    require(
        metric in fitting,
        "training.best_metric",
        metric,
        f"is not measured in {tokens.task}, for which {tokens.folder!r} was made; use {' or '.join(fitting)}",
    )
    if metric == "loss":
        return
    require(
        config.valid_rows > 0,
        "training.valid_rows",
        config.valid_rows,
        f"decodes nothing, so there is no training.best_metric={metric!r}; decode some rows, or use best_metric=loss",
    )
    if not tokens.has_split("valid"):
        raise InputError(
            f"training.best_metric={metric!r} needs validation data, and {tokens.folder!r} has none; tokenize with "
            "corpus.valid or corpus.valid_share, or use best_metric=loss"
        )
