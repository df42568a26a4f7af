"""A checkpoint made with other settings: what of it still holds is kept, what not begins anew, and people are told."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from tfray import storage
from tfray.batches.order import Order, place_again
from tfray.checkpoint.checkpoints import check_weights
from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig, TrainJob
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder

logger = logging.getLogger(__name__)


def check_model(job: TrainJob, tokens: TokenFolder) -> None:
    """Raise CheckpointMismatch where the newest checkpoint holds weights of other shapes than the job's model has."""
    with torch.device("meta"):
        model = Transformer(resolve(job.model, tokens.vocab_size, tokens.max_length))
    check_weights(job.out, dict(model.named_parameters()))


def adapt(progress: Progress, order: Order, best_metric: str, judged_by: str = "") -> Progress:
    """Return how far training is in this data order and by this metric, on validation data that `judged_by` tells
    apart; a checkpoint of before such things were noted counts as made with the same."""
    if progress.order and progress.order != order:
        progress = adapt_place(progress, order)
    if progress.best_metric and progress.best_metric != best_metric:
        logger.warning(
            "the best %s so far, of step %d, says nothing about %s: best/ goes by the validations from here on, first "
            "that of the checkpoint",
            *(progress.best_metric, progress.best_step, best_metric),
        )
        progress = forget_best(progress)
    elif progress.judged_by and progress.judged_by != judged_by:
        logger.warning(
            "the best %s so far, of step %d, is of other validation data: best/ goes by the validations from here on, "
            "first that of the checkpoint",
            *(progress.best_metric, progress.best_step),
        )
        progress = forget_best(progress)
    return replace(progress, order=order, best_metric=best_metric, judged_by=judged_by)


def forget_best(progress: Progress) -> Progress:
    """Return progress that no validation has judged, and whose weights are to be judged."""
    return replace(progress, best_score=None, best_step=0, stale_validations=0, pending="validation")


def judged_by(tokens: TokenFolder, config: TrainingConfig) -> str:
    """Return what tells validation data, and how they are decoded, apart from others."""
    shards = [shard.sha256 for shard in tokens.shards("valid")]
    decoding = () if config.best_metric == "loss" else (config.valid_rows, config.valid_beam_size)
    return storage.fingerprint([shards, decoding])


def adapt_place(progress: Progress, order: Order) -> Progress:
    """Return progress with its place in another data order."""
    before, now = progress.cursor, place_again(progress.cursor, progress.order, order)
    progress = replace(progress, order_since=[progress.step, now.epoch, now.pool, progress.tokens])
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
