"""What one training worker does: restore, step through the feed, log, validate, save."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from tfray.batches.ahead import Ahead
from tfray.batches.feed import FeedOrderError, FeedStep, open_feed, read_feed, read_rows, split_feed
from tfray.batches.mixing import fewest_pairs
from tfray.batches.order import order_of
from tfray.batches.plan import most_pairs
from tfray.batches.pool import mix_shards
from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Pending
from tfray.cluster import own_cpus
from tfray.config import TrainingConfig
from tfray.model.architecture import resolve
from tfray.model.precision import choose_dtype, name_of, prepare_cpu
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.training.assignment import Assignment
from tfray.training.ends import count_steps, is_done, is_stale, most_epochs
from tfray.training.failure import LaneBatch, stop_training
from tfray.training.flops import batch_flops, device_peak
from tfray.training.folders import ModelFolders
from tfray.training.group import ask_to_save_once
from tfray.training.journal import Journal
from tfray.training.judge import judged
from tfray.training.meter import Meter
from tfray.training.parallel import agree_on_precision, make_state
from tfray.training.resume import adapt, choose_precision, judged_by
from tfray.training.schedule import learning_rate
from tfray.training.seeds import dropout_seed, weights_seed
from tfray.training.spikes import SpikeGuard
from tfray.training.step import train_step
from tfray.training.stop import WISHES, Agreement, Left, Preempted, Wish, leave_if_wanted
from tfray.training.trace import Trace
from tfray.training.validation import Finding, Validation
from tfray.training.validator import ActorValidator
from tfray.units.stream import poll_less

logger = logging.getLogger(__name__)

STEPS_AHEAD = 4
"""Steps whose tensors are made while the present one trains."""


class Worker:
    """One of the processes that train together; rank 0 speaks and writes for all."""

    def __init__(self, assignment: Assignment, rank: int, workers: int, started: int) -> None:
        self.assignment, self.rank, self.workers, self.started = assignment, rank, workers, started
        job = assignment.job
        self.tokens: TokenFolder = open_tokens(job.tokens_folder)
        self.lanes = list(range(rank, job.batches.lanes, workers))
        self.device = prepare_device(job.training)
        self.checkpoints = Checkpoints(
            job.out,
            keep=job.training.keep_checkpoints,
            keep_best=job.training.keep_best_checkpoints,
            every=job.training.checkpoint_every,
        )
        agreed = agree_on_precision(self.device)
        precision = choose_precision(self.checkpoints.newest(), job.training, agreed)
        self.job = job = replace(job, training=replace(job.training, precision=precision))
        self.dtype = choose_dtype(precision, self.device)
        self.architecture = resolve(job.model, self.tokens.vocab_size, self.tokens.max_length)
        torch.manual_seed(weights_seed(job.training.seed))
        self.state = make_state(Transformer(self.architecture), job.training, self.dtype, self.device)
        self.state.model.train()
        order = order_of(self.tokens, job.batches)
        loaded, judge = self.checkpoints.load(self.state.tensors()), judged_by(self.tokens, job.training)
        self.progress = adapt(loaded, order, job.training.best_metric, judge)
        self.steps = count_steps(job.training, assignment.epoch, self.progress.order_since)
        self.state.loaded(self.progress.updates)
        self.spikes = SpikeGuard(job.training.spike_factor, job.training.gradient_clip)
        self.spikes.load_state_dict(self.progress.spikes)
        self.folders = ModelFolders(job, self.tokens, self.architecture)
        self.validation = self.make_validation()
        self.meter = Meter(self.progress.seconds, partial(device_peak, self.device, self.dtype))
        self.journal = Journal(assignment, self.steps, rank, self.meter)
        self.score: float | None = self.checkpoints.score if self.progress.pending == "scores" else None
        """Of the newest weights, where they were judged; more is better."""
        self.pending: Pending = self.progress.pending
        """What is still to be found of the newest weights, but for scores from beside."""
        pause = assignment.trace_pause
        self.trace = None if pause is None else Trace(job.out, pause)
        self.save_was_asked = False

    def make_validation(self) -> Validation:
        """Return what validates, here or beside the training."""
        job, is_beside = self.job, self.assignment.validates_beside
        on_gpu = self.device.type == "cuda"
        validator = None
        if is_beside and self.rank == 0:
            validator = ActorValidator(self.tokens, self.architecture, job.training, on_gpu)
        return Validation(
            self.tokens,
            self.architecture,
            job.training,
            job.batches.max_tokens,
            self.device,
            self.rank,
            is_beside=is_beside,
            validator=validator,
            between=partial(leave_if_wanted, self.device),
        )

    def run(self) -> None:
        """Train from where the newest checkpoint is to the last step, or until somebody wants it to end."""
        parameters = sum(p.numel() for p in self.state.model.parameters())
        self.journal.started(
            self.progress.step,
            parameters,
            workers=self.workers,
            surplus=self.started - self.workers,
            device=str(self.device),
            precision=name_of(self.dtype),
        )
        if self.progress.awaited and self.rank == 0:
            logger.warning(
                "the weights of step %d get no scores: training broke off before they were there", self.progress.awaited
            )
        wish = self.catch_up()
        for feed_step in self.feed_steps() if wish < Wish.END and not self.is_over else ():
            agreement = Agreement(self.device)
            self.step(feed_step)
            wish = self.after_step(agreement.result())
            if self.is_over or wish >= Wish.END:
                break
        if self.meter.metrics:  # of steps after the last line: an end that was asked for, or early stopping
            self.tell()
        self.checkpoints.wait()
        if self.is_over and not self.left:
            weights = self.state.weights()
            if self.rank == 0:
                self.folders.write_last(weights, self.progress)
        elif wish >= Wish.END:
            self.end(wish)
        else:
            raise FeedOrderError(f"the feed ended at {self.progress}, before the training's end")

    def catch_up(self) -> Wish:
        """Find what was still to be found of the checkpoint's weights; return what to do then."""
        if not self.pending:
            return Wish.NOTHING
        try:
            if self.pending == "validation":
                self.validate()
            else:
                with self.meter.paused():
                    self.judge(self.validation.score(self.state, self.progress.step))
                self.pending = ""
            if self.is_over:
                self.judge(self.validation.finish())
        except Left as left:
            return left.wish
        if not self.left:
            self.save()
        return Wish.NOTHING

    def feed_steps(self) -> Iterator[FeedStep]:
        """Yield this worker's share of each step, from the cursor on; the next ones are made ahead."""
        shares: list = [None] * self.workers
        if self.rank == 0:
            poll_less()  # in this process, where one worker reads alone
            pairs = fewest_pairs(mix_shards(self.tokens, self.job.batches))
            epochs = most_epochs(
                self.progress, self.job.training, pairs, most_pairs(self.job.batches, self.tokens.max_length)
            )
            feed = open_feed(self.tokens, self.job.batches, epochs, self.progress.cursor)
            shares = split_feed(feed, self.workers)
        if self.workers > 1:
            dist.broadcast_object_list(shares, src=0, device=self.device)
        rows = read_rows(shares[self.rank], ahead=len(self.lanes))
        steps = Ahead(read_feed(rows, self.lanes, self.progress.cursor), STEPS_AHEAD)
        with self.meter.paused():  # the pipeline starts
            steps.wait_for_first()
        try:
            yield from self.meter.waiting(steps)
        finally:
            steps.close()

    def step(self, feed_step: FeedStep) -> None:
        """Take one optimizer step and move the cursor."""
        self.score, self.pending = None, ""
        config, step = self.job.training, self.progress.step
        batches = feed_step.micro_batches
        seeds = [dropout_seed(config.seed, step, lane) for lane in self.lanes]
        metrics = train_step(self.state, batches, seeds, self.rate(step), config, self.spikes)
        if not metrics.is_finite:
            own = [LaneBatch(*part) for part in zip(self.lanes, seeds, batches, strict=True)]
            precision = name_of(self.dtype)
            stop_training(self.state, own, step, feed_step.cursor, self.job, self.tokens, precision)
        passes = 2 if config.r_drop else 1
        self.meter.add(metrics, sum(batch_flops(self.architecture, batch, passes) for batch in batches))
        if self.trace is not None:
            self.trace.add(step, self.lanes, batches)
        self.progress = replace(
            self.progress,
            step=step + 1,
            epoch=feed_step.after.epoch,
            pool=feed_step.after.pool,
            step_in_pool=feed_step.after.step,
            tokens=self.progress.tokens + metrics.target_tokens,
            updates=self.progress.updates + (not metrics.is_skipped),
            skipped=self.progress.skipped + metrics.is_skipped,
            seconds=self.meter.seconds,
        )

    def after_step(self, wish: Wish) -> Wish:
        """Log, validate and save where it is time to, or where somebody wants it; return what is wanted then."""
        config, step = self.job.training, self.progress.step
        is_last = is_done(self.progress, config)
        if is_last or step % config.log_every == 0:
            self.tell()
        self.judge(self.validation.poll())
        try:
            if is_last or step % config.validate_every == 0:
                self.validate()
            if self.is_over:
                self.judge(self.validation.finish())
        except Left as left:
            wish = left.wish
        if wish >= Wish.END and not self.is_over:
            self.judge(self.validation.last_chance(step))
        is_candidate = bool(config.keep_best_checkpoints) and self.score is not None
        if self.is_over or step % config.checkpoint_every == 0 or wish >= Wish.SAVE or is_candidate:
            self.save()
        self.save_was_asked = ask_to_save_once(self.save_was_asked)
        return wish

    def tell(self) -> None:
        """Log the steps since the last line."""
        self.journal.trained(self.progress, self.rate(self.progress.step - 1), self.checkpoints.waited_seconds)

    def end(self, wish: Wish) -> None:
        """End training before its last step; all of it is saved."""
        self.journal.stopped(self.progress.step, wish)
        if wish == Wish.MOVE:
            raise Preempted(f"a worker was asked to end by SIGTERM; all was saved at step {self.progress.step}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(step, self.steps, self.job.training)

    @property
    def is_over(self) -> bool:
        """True when there is no step left to take."""
        return is_done(self.progress, self.job.training) or is_stale(self.progress, self.job.training)

    @property
    def left(self) -> Pending:
        """What is still to be found of the newest weights."""
        return self.pending or ("scores" if self.validation.awaited == self.progress.step else "")

    def validate(self) -> None:
        """Measure how good the model is."""
        self.pending = "validation"
        with self.meter.paused():
            self.judge(self.validation.validate(self.state, self.progress.step))
        self.pending = ""

    def judge(self, findings: Iterable[Finding]) -> None:
        """Log what validation found, and keep the model where it is the best so far."""
        for finding in findings:
            self.progress, is_best = judged(self.progress, finding.step, finding.metrics)
            metric = self.progress.best_metric
            if finding.step == self.progress.step and metric in finding.metrics:
                self.score = finding.metrics[metric] * (-1 if metric == "loss" else 1)
            if is_best and self.rank == 0:
                self.folders.write("best", finding.weights, self.progress, finding.step)
            self.journal.validated(finding, is_best)

    def save(self) -> None:
        """Write a checkpoint in the background."""
        self.journal.check_place()
        precision = self.job.training.precision
        awaited = 0 if self.left else self.validation.awaited or 0
        self.progress = replace(
            self.progress, spikes=self.spikes.state_dict(), precision=precision, pending=self.left, awaited=awaited
        )
        self.checkpoints.save(self.progress, self.state.tensors(), self.score)
        WISHES.saved()


def prepare_device(config: TrainingConfig) -> torch.device:
    """Return what this process computes on; a CPU is set up for its share of the machine's cores."""
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        own_share = own_cpus() // ray.train.get_context().get_local_world_size()
        prepare_cpu(threads=max(1, int(config.cpus_per_worker or own_share)))
    return device
