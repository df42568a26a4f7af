"""What one training worker does: restore, step through the feed, log, validate, save."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

import ray.train
import ray.train.torch
import torch

from tfray import storage
from tfray.batches.feed import FeedOrderError, FeedStep, read_feed
from tfray.checkpoint.folder import save_model_folder
from tfray.checkpoint.state import load_tensors, newest_progress, save_checkpoint
from tfray.config import TextConfig, TrainJob
from tfray.model.architecture import resolve
from tfray.model.precision import choose_dtype, prepare_cpu
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder, open_tokens
from tfray.training.log import write_event
from tfray.training.meter import Meter
from tfray.training.replicated import Replicated
from tfray.training.schedule import learning_rate
from tfray.training.state import TrainState
from tfray.training.step import train_step
from tfray.training.validation import load_validation, validation_loss


def train_worker(settings: dict) -> None:
    """Train to the end; `settings` holds the job and about how many steps it has."""
    job, steps = settings["job"], settings["steps"]
    Worker(job, open_tokens(job.tokens_folder), steps).run()


class Worker:
    """One of the processes that train together; rank 0 speaks and writes for all."""

    def __init__(self, job: TrainJob, tokens: TokenFolder, steps: int) -> None:
        context = ray.train.get_context()
        self.job, self.tokens, self.steps = job, tokens, steps
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            prepare_cpu(threads=max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        self.progress = newest_progress(job.out)
        self.state = self.make_state()
        self.validation = load_validation(tokens, job.batches.max_tokens, self.rank, self.workers)
        self.meter = Meter(self.progress.seconds)

    def make_state(self) -> TrainState:
        """Return model and optimiser, new or as the newest checkpoint has them."""
        job = self.job
        torch.manual_seed(job.training.seed)
        max_length = self.tokens.manifest["made_from"]["tokens"]["max_length"]
        self.architecture = resolve(job.model, self.tokens.manifest["vocab_size"], max_length)
        transformer = Transformer(self.architecture).to(self.device)
        self.dtype = choose_dtype(job.training.precision, self.device)
        state = Replicated(transformer, job.training, self.dtype)
        if self.progress.step:
            saved = load_tensors(job.out, self.progress)
            for name, tensor in state.tensors().items():
                tensor.copy_(saved[name])
            state.loaded(self.progress.step)
        state.model.train()
        return state

    def run(self) -> None:
        """Train from where the newest checkpoint is to the last step."""
        self.log_start()
        for feed_step in self.feed_steps():
            self.step(feed_step)
            is_last = self.is_done
            if is_last or self.progress.step % self.job.training.log_every == 0:
                self.log_step()
            if is_last or self.progress.step % self.job.training.validate_every == 0:
                self.validate()
            if is_last or self.is_stale or self.progress.step % self.job.training.checkpoint_every == 0:
                self.save()
            if is_last or self.is_stale:
                break
        if not (self.is_done or self.is_stale):
            raise FeedOrderError(f"the feed ended at {self.progress}, before the training's end")
        if self.rank == 0:
            self.save_folder("last")

    def feed_steps(self) -> Iterator[FeedStep]:
        """Yield this worker's share of each step, from the cursor on."""
        if self.is_done or self.is_stale:
            return iter(())
        rows = ray.train.get_dataset_shard("train").iter_batches(  # type: ignore[union-attr]
            batch_size=1, batch_format="pyarrow", prefetch_batches=1
        )
        lanes = list(range(self.rank, self.job.batches.lanes, self.workers))
        return read_feed(iter(rows), lanes, self.progress.cursor)

    def step(self, feed_step: FeedStep) -> None:
        """Take one optimiser step and move the cursor."""
        config, step = self.job.training, self.progress.step
        lanes = range(self.rank, self.job.batches.lanes, self.workers)
        # Dropout follows from seed, step and lane, so that it does not depend on the worker.
        seeds = [(config.seed << 40) + step * self.job.batches.lanes + lane for lane in lanes]
        rate = learning_rate(step, self.steps, config)
        metrics = train_step(self.state, feed_step.micro_batches, seeds, rate, config)
        if not metrics.is_finite:
            raise FloatingPointError(
                f"loss {metrics.negative_log_likelihood}, gradient norm {metrics.gradient_norm} at step {step}, "
                f"{feed_step.cursor}; lower training.learning_rate or lengthen training.warmup_steps"
            )
        self.meter.add(metrics)
        self.progress = replace(
            self.progress,
            step=step + 1,
            epoch=feed_step.after.epoch,
            pool=feed_step.after.pool,
            step_in_pool=feed_step.after.step,
            seconds=self.meter.seconds,
        )

    @property
    def is_done(self) -> bool:
        """True when the last epoch is over, or the last step taken."""
        config = self.job.training
        return self.progress.epoch >= config.epochs or self.progress.step >= (config.max_steps or math.inf)

    @property
    def is_stale(self) -> bool:
        """True when validation has not improved for `patience` times."""
        patience = self.job.training.patience
        return bool(patience) and self.progress.stale_validations >= patience

    def validate(self) -> None:
        """Measure the validation loss, and keep the model if it is the best so far."""
        has_validation = self.tokens.has_split("valid")  # a worker's own share of it can be empty
        if has_validation:
            with self.meter.paused(), self.state.averaged():
                loss = validation_loss(self.state.model, self.validation, self.device)
        else:
            loss = math.inf  # without validation data the newest model is the best
        is_best = loss < self.progress.best_loss or not has_validation
        self.progress = replace(
            self.progress,
            best_loss=loss if is_best else self.progress.best_loss,
            best_step=self.progress.step if is_best else self.progress.best_step,
            stale_validations=0 if is_best else self.progress.stale_validations + 1,
        )
        if is_best and self.rank == 0:
            self.save_folder("best")
        if has_validation:
            self.log({"event": "valid", "loss": loss, "perplexity": math.exp(min(loss, 700)), "is_best": is_best})
        ray.train.report({"step": self.progress.step, "validation_loss": loss})

    def save(self) -> None:
        """Write a checkpoint."""
        if self.rank == 0:
            with self.meter.paused():
                tensors = {name: tensor.cpu() for name, tensor in self.state.tensors().items()}
                save_checkpoint(self.job.out, self.progress, tensors, self.job.training.keep_checkpoints)

    def save_folder(self, name: str) -> None:
        """Write the (averaged) model as a model folder."""
        made = {
            "step": self.progress.step,
            "best validation loss": self.progress.best_loss,
            "tokens": self.tokens.fingerprint,
        }
        folder = storage.join(self.job.out, name)
        tokens = self.tokens
        text = TextConfig(**tokens.manifest["made_from"].get("corpus", {}).get("text", {}))
        save_model_folder(
            folder, self.state.weights(), self.architecture, tokens.tokenizer.json, tokens.task, made, text
        )

    def log(self, event: dict) -> None:
        """Write an event, once for all workers."""
        if self.rank == 0:
            write_event(self.job.out, {**event, "step": self.progress.step, "seconds": round(self.meter.seconds, 2)})

    def log_start(self) -> None:
        """Say what is trained on what."""
        parameters = sum(p.numel() for p in self.state.model.parameters())
        precision = str(self.dtype).removeprefix("torch.")
        self.log(
            {
                "event": "start",
                "parameters": parameters,
                "steps": self.steps,
                "workers": self.workers,
                "device": str(self.device),
                "precision": precision,
            }
        )

    def log_step(self) -> None:
        """Say how training went since the last line."""
        rates = self.meter.take()
        left = max(0, self.steps - self.progress.step) * rates.pop("seconds_per_step")
        rate = learning_rate(self.progress.step - 1, self.steps, self.job.training)
        self.log(
            {
                "event": "train",
                "steps": self.steps,
                "epoch": self.progress.epoch,
                "learning_rate": rate,
                "seconds_left": round(left, 1),
                **rates,
            }
        )
