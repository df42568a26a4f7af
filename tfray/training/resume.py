"""A checkpoint made with other settings: what of it still holds is kept, what not begins anew, and people are told."""

from __future__ import annotations

import logging
from dataclasses import replace

from tfray.batches.order import Order, place_again
from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig

logger = logging.getLogger(__name__)


def adapt(progress: Progress, order: Order, best_metric: str) -> Progress:
    """Return how far training is in this data order and by this metric; a checkpoint of before such things were noted
    counts as made with the same."""
    if progress.order:
        progress = adapt_place(progress, order)
    if progress.best_metric and progress.best_metric != best_metric:
        logger.warning(
            "the best %s so far, of step %d, says nothing about %s: best/ goes by the validations from here on, first "
            "that of the checkpoint",
            *(progress.best_metric, progress.best_step, best_metric),
        )
        progress = replace(progress, best_score=None, best_step=0, stale_validations=0, pending="validation")
    return replace(progress, order=order, best_metric=best_metric)


def adapt_place(progress: Progress, order: Order) -> Progress:
    """Return progress with its place in this data order."""
    before, now = progress.cursor, place_again(progress.cursor, progress.order, order)
    if now == before:
        return progress
    if progress.order["pools"] == order["pools"]:
        again = f"pool {now.pool} of epoch {now.epoch} begins anew; the {before.step} steps of it"
    else:
        again = f"epoch {now.epoch} begins anew; the {before.pool} pools and {before.step} steps of it"
    logger.warning("the data order has changed, and %s that were done are done again, in other micro-batches", again)
    return replace(progress, pool=now.pool, step_in_pool=now.step)


def choose_precision(progress: Progress, config: TrainingConfig, agreed: str) -> str:
    """Return the precision to train in: what is set, or that in which the run began, or what the workers agreed on."""
    if config.precision != "auto":
        return config.precision
    if progress.precision and progress.precision != agreed:
        logger.warning(
            "training goes on in %s, in which it began; for these machines it would be %s, with --training.precision "
            "%s --allow_change training.precision",
            *(progress.precision, agreed, agreed),
        )
    return progress.precision or agreed
