"""The train job: token shards -> checkpoints, model folders, log and curves, through Ray Train."""

from __future__ import annotations

import logging
from dataclasses import replace

from tfray import storage
from tfray.batches.count import count_epoch, log_mixture
from tfray.batches.mixing import Portion
from tfray.batches.pool import check_dropout, mix_shards
from tfray.cluster import connected
from tfray.config import TrainingConfig, TrainJob
from tfray.config.rules import results_follow_from
from tfray.model.architecture import resolve
from tfray.tokens.check import check_tokens
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.training.ends import count_steps, lacks_average
from tfray.training.judge import check_metric
from tfray.training.log import format_seconds
from tfray.units.ledger import Found, Ledger, find_ledger, open_ledger, store_settings
from tfray.units.lock import Lock

logger = logging.getLogger(__name__)


def train(job: TrainJob) -> str:
    """Return the folder of the trained model, trained now or before; for a dry run, a report.

    Raises InputError where tokens, settings or the cluster do not fit, and CheckpointMismatch where 'out' holds a
    training with other settings.
    """
    tokens = open_tokens(job.tokens_folder)
    resolve(job.model, tokens.vocab_size, 1)
    portions = mix_shards(tokens, job.batches)
    check_dropout(tokens, job.batches)
    check_metric(job.training, tokens)
    job = replace(job, tokens_folder=tokens.folder, out=storage.absolute(job.out))
    if job.dry_run:
        from tfray.training.dry_run import report_dry_run  # needs torch, which takes seconds to import

        steps = count_steps(job.training, count_epoch(tokens, job.batches))
        warn_of_warmup(job.training, steps)
        return report_dry_run(job, tokens, made_from(job, tokens), steps)
    storage.check_writable(job.out)
    with Lock(job.out) as lock:
        return carry_out(job, tokens, portions, lock)


def carry_out(job: TrainJob, tokens: TokenFolder, portions: list[Portion], lock: Lock) -> str:
    """Return the folder of the trained model, trained now or before by a job that has the place for itself."""
    wanted = job.out, made_from(job, tokens), job.overwrite, job.allow_change
    ledger, found = find_ledger(*wanted)
    if found is Found.THE_SAME and ledger.is_finished and not lacks_average(job, ledger.manifest):
        logger.info("training: %s is finished and unchanged", ledger.folder)
        return storage.join(job.out, "best")
    check_tokens(tokens)
    if found is Found.CHANGED:
        from tfray.training.resume import check_model  # needs torch

        check_model(job, tokens)
    log_mixture(portions)
    epoch = count_epoch(tokens, job.batches)
    warn_of_warmup(job.training, count_steps(job.training, epoch))
    with connected(job.cluster):
        from tfray.training.fit import fit, place_job  # Ray Train takes a second to import

        placement = place_job(job, tokens.has_split("valid"))
        ledger = open_ledger(*wanted)  # last: what was there before goes only where nothing stands in the way
        store_settings(ledger.folder, job)
        fit(job, placement, epoch, lock.ticket)
    lock.check()
    finish(job, ledger)
    return storage.join(job.out, "best")


def made_from(job: TrainJob, tokens: TokenFolder) -> dict[str, object]:
    """Return everything that the trained weights follow from."""
    weights = {name: weight for name, weight in tokens.weights.items() if name not in job.batches.weights}
    return {
        "tokens": tokens.fingerprint,
        # The shards are the same whatever the weights, and so is their fingerprint; the order is not.
        **{f"corpus.parts.{name}.weight": weight for name, weight in weights.items() if weight != 1},
        "model": results_follow_from(job.model),
        "batches": results_follow_from(job.batches),
        "training": results_follow_from(job.training),
    }


def warn_of_warmup(config: TrainingConfig, steps: int) -> None:
    """Tell people where training ends before its learning rate is what they set."""
    if config.warmup_steps > steps:
        logger.warning(
            "training.warmup_steps=%d, and there are about %d steps: the learning rate never reaches "
            "training.learning_rate; lower warmup_steps, or train longer",
            *(config.warmup_steps, steps),
        )


def finish(job: TrainJob, ledger: Ledger) -> None:
    """Declare the training finished."""
    from tfray.checkpoint.state import newest_progress  # needs torch

    progress = newest_progress(ledger.folder)
    ledger.finish(
        {
            "steps": progress.step,
            "best_step": progress.best_step,
            "best_metric": job.training.best_metric,
            "best_score": progress.best_score,
            "average_checkpoints": job.training.average_checkpoints,
            "tokens": progress.tokens,
            "skipped_steps": progress.skipped,
            "seconds": progress.seconds,
        }
    )
    score = progress.best_score
    logger.info(
        "training: %d steps in %s, %s -> %s",
        progress.step,
        format_seconds(progress.seconds),
        "no validation data"
        if score is None
        else f"best {job.training.best_metric} {score:.4f} at step {progress.best_step}",
        storage.join(ledger.folder, "best"),
    )
