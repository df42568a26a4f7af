"""The train job: token shards -> checkpoints, model folders, log and curves, through Ray Train."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from tfray import storage
from tfray.batches.feed import open_feed
from tfray.batches.mixing import Draw, Portion, drawn_rows
from tfray.batches.plan import plan_pool, plan_pools
from tfray.batches.pool import PoolReader, check_dropout, mix_shards
from tfray.checkpoint.state import newest_progress
from tfray.cluster import cluster_total, connected
from tfray.config import ClusterConfig, TrainingConfig, TrainJob
from tfray.errors import InputError
from tfray.model.architecture import resolve
from tfray.tokens.shards import TokenFolder, open_tokens, read_lengths
from tfray.training.display import Display
from tfray.training.log import format_seconds
from tfray.units.ledger import Ledger, open_ledger, store_settings
from tfray.units.stream import find_input_error

logger = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "workers",
    "use_gpu",
    "cpus_per_worker",
    "max_failures",
    "log_every",
    "keep_checkpoints",
    "checkpoint_every",
}
"""Training settings that do not change what is learned."""


def train(job: TrainJob) -> str:
    """Return the folder of the trained model, trained now or before."""
    tokens = open_tokens(job.tokens_folder)
    resolve(job.model, tokens.manifest["vocab_size"], 1)
    mix_shards(tokens, job.batches)
    check_dropout(tokens, job.batches)
    job = replace(job, tokens_folder=tokens.folder, out=storage.absolute(job.out))
    ledger = open_ledger(job.out, made_from(job, tokens), job.overwrite)
    if ledger.is_finished:
        logger.info("training: %s is finished and unchanged", ledger.folder)
        return storage.join(job.out, "best")
    store_settings(ledger.folder, job)
    with connected(job.cluster):
        fit(job, tokens)
    finish(ledger)
    return storage.join(job.out, "best")


def made_from(job: TrainJob, tokens: TokenFolder) -> dict[str, object]:
    """Return everything that the trained weights follow from."""
    settings = {name: value for name, value in asdict(job.training).items() if name not in FREE_TO_CHANGE}
    return {
        "tokens": tokens.fingerprint,
        "model": asdict(job.model),
        "batches": asdict(job.batches),
        "training": settings,
    }


def fit(job: TrainJob, tokens: TokenFolder) -> None:
    """Run the workers to the last step; lost workers start again from the newest checkpoint."""
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from tfray.training.worker import train_worker

    use_gpu, resources = place_workers(job.training, job.cluster)
    steps = count_steps(job, tokens)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "steps": steps},
        datasets={"train": partial(reopen_feed, job, tokens)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
        scaling_config=ScalingConfig(num_workers=job.training.workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="ray_train",
            storage_path=job.out,
            failure_config=FailureConfig(max_failures=job.training.max_failures),
        ),
    )
    # In a thread of its own, since in the main thread Ray takes Ctrl-C for itself and says nothing.
    executor = ThreadPoolExecutor(1)
    display = Display(job.out)
    training = executor.submit(trainer.fit)
    executor.shutdown(wait=False)
    follow_log(display, training)
    if error := training.exception():
        raise find_input_error(error) or error from None


def reopen_feed(job: TrainJob, tokens: TokenFolder):
    """Return the feed from the newest checkpoint's cursor; Ray calls this at every start of the workers."""
    return open_feed(tokens, job.batches, job.training.epochs, newest_progress(job.out).cursor)


def count_steps(job: TrainJob, tokens: TokenFolder) -> int:
    """Return about how many steps training has: those of the first epoch, planned pool by pool, times the epochs.

    Other epochs gather the shards into other pools, so their number can differ by a few; BPE dropout makes
    pairs longer, by as much as it does those of the first pool.
    """
    paths, portions, config = tokens.paths("train"), mix_shards(tokens, job.batches), job.batches
    log_mixture(portions)
    steps: list[int] = []
    pools = plan_pools(portions, config, 0)
    for pool in pools:
        drawn = [draw_lengths(paths[draw.shard], draw, portions[draw.shard], config.seed) for draw in pool.draws]
        source, target = (np.concatenate(side) for side in zip(*drawn, strict=True))
        steps.append(len(plan_pool(source, target, config, 0, pool.index)))
    first_epoch = sum(steps)
    if config.bpe_dropout:
        longer = plan_pool(*PoolReader(tokens, config).read(pools[0], 0).lengths, config, 0, 0)
        first_epoch = round(first_epoch * len(longer) / steps[0])
    return min(first_epoch * job.training.epochs, job.training.max_steps or sys.maxsize)


def draw_lengths(path: str, draw: Draw, portion: Portion, seed: int) -> list[np.ndarray]:
    """Return the source and target lengths of what is drawn of a shard."""
    rows = drawn_rows(draw, portion, seed)
    return [lengths[rows] for lengths in read_lengths(path)]


def log_mixture(portions: list[Portion]) -> None:
    """Say how often each corpus is seen, where that is not once an epoch."""
    pairs: Counter[str] = Counter()
    for portion in portions:
        pairs[portion.corpus] += portion.pairs
    repeats = {portion.corpus: portion.repeats for portion in portions}
    if any(times != 1 for times in repeats.values()):
        parts = (f"{name}: {pairs[name]:,} pairs x {times:.4g}" for name, times in repeats.items())
        logger.info("an epoch sees %s", "; ".join(parts))


def place_workers(config: TrainingConfig, cluster: ClusterConfig) -> tuple[bool, dict[str, float]]:
    """Return whether workers use GPUs, and the resources of each.

    Raises InputError where the cluster cannot hold them, unless it grows on demand.
    """
    cpus, gpus = cluster_total("CPU"), cluster_total("GPU")
    use_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and gpus >= config.workers)
    # Data tasks need a core too: whole cores for workers only where one is left over.
    spare = 1.0 if cpus > config.workers or cluster.autoscaling else 0.5
    per_worker = config.cpus_per_worker or spare
    wanted = {"CPU": config.workers * per_worker + 0.25, "GPU": float(config.workers if use_gpu else 0)}
    for resource, total in {"CPU": cpus, "GPU": gpus}.items():
        if wanted[resource] > total and not cluster.autoscaling:
            raise InputError(
                f"training.workers={config.workers} need {wanted[resource]:g} {resource}s (data tasks included), the "
                f"cluster has {total:g}; use fewer workers, or say --cluster.autoscaling true if it grows on demand"
            )
    return use_gpu, {"CPU": per_worker, **({"GPU": 1.0} if use_gpu else {})}


def follow_log(display: Display, training: Future) -> None:
    """Show people what the log says until training ends; workers may be elsewhere."""
    while not wait([training], timeout=1.0).done:
        display.update()
    display.close()


def finish(ledger: Ledger) -> None:
    """Declare the training finished."""
    progress = newest_progress(ledger.folder)
    ledger.finish(
        {
            "steps": progress.step,
            "best_step": progress.best_step,
            "best_loss": progress.best_loss,
            "seconds": progress.seconds,
        }
    )
    best = f"best validation loss {progress.best_loss:.4f} at step {progress.best_step}"
    logger.info(
        "training: %d steps in %s, %s -> %s",
        progress.step,
        format_seconds(progress.seconds),
        best if math.isfinite(progress.best_loss) else "no validation data",
        storage.join(ledger.folder, "best"),
    )
