"""A loss or gradient that is not a number: the step, lane and examples where it arose, and a dump that reproduces it.

OUT/failure/batch.safetensors      the micro-batch
OUT/failure/weights.safetensors    the fp32 weights on which it failed
OUT/failure/failure.json           step, lane, seed, settings, and where each example comes from
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, NamedTuple, NoReturn

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tfray import storage
from tfray.batches.batch import Batch
from tfray.batches.order import Cursor
from tfray.batches.origin import Origin, find_origins
from tfray.config import TrainingConfig, TrainJob, WorkerRange
from tfray.errors import InputError, JobError
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder
from tfray.training.replicated import Replicated
from tfray.training.state import TrainState
from tfray.training.workers import gather_from_workers, world_size

FAILURE, BATCH, WEIGHTS, REPORT = "failure", "batch.safetensors", "weights.safetensors", "failure.json"
EXAMPLES_NAMED = 3


class NonFiniteStep(InputError):
    """Training cannot go on: a loss or a gradient is not finite. From the same checkpoint it would be so again."""


class LaneBatch(NamedTuple):
    """A lane's part of a step."""

    lane: int
    seed: int
    batch: Batch


class Outcome(NamedTuple):
    """What a micro-batch gave."""

    loss: float
    """Negative log-likelihood in nats a target token."""
    gradient_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Failure(NamedTuple):
    """What is to be said of a step that is not finite."""

    step: int
    cursor: Cursor
    lane: LaneBatch
    outcome: Outcome
    is_sum: bool
    """True where each lane alone is finite, and the sum of their gradients is not: this one has added most to it."""
    origins: list[Origin]
    """Of the lane's examples."""


def stop_training(
    state: TrainState, own: list[LaneBatch], step: int, cursor: Cursor, job: TrainJob, tokens: TokenFolder, dtype: str
) -> NoReturn:
    """Find the lane whose loss or gradient is not finite, dump it, and raise NonFiniteStep on every worker.

    Every worker calls this, before anything has changed the weights, with its `own` lanes on the CPU; `dtype` is
    training's, as in "bfloat16".
    """
    lanes = gather_lanes(own)
    outcomes = [compute(state, lane) for lane in lanes]
    guilty = next((index for index, outcome in enumerate(outcomes) if not outcome.is_finite), None)
    # No lane alone: their sum has overflown, to which the largest gradient has added most.
    index = max(range(len(lanes)), key=lambda i: outcomes[i].gradient_norm) if guilty is None else guilty
    origins = find_origins(tokens, job.batches, *cursor, lanes[index].lane)
    failure = Failure(step, cursor, lanes[index], outcomes[index], guilty is None, origins)
    folder = storage.join(job.out, FAILURE)
    weights, problem = whole_weights(state), ""
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            write_dump(folder, failure.lane.batch, weights, report_of(failure, state, job, dtype))
        except (OSError, JobError) as error:
            problem = str(error)
    problem = gather_from_workers(problem)[0]  # all wait for it: with the first that raises Ray ends them all
    raise NonFiniteStep(describe(failure, folder, problem))


def gather_lanes(own: list[LaneBatch]) -> list[LaneBatch]:
    """Return all workers' lanes in order, on every worker."""
    return sorted((lane for lanes in gather_from_workers(own) for lane in lanes), key=lambda lane: lane.lane)


def compute(state: TrainState, lane: LaneBatch) -> Outcome:
    """Return what a lane gives by itself; all workers compute the same, so that their communication matches."""
    state.discard()
    torch.manual_seed(lane.seed)
    tokens = lane.batch.target_tokens
    loss = state.accumulate(lane.batch, 1 / (tokens * world_size()), is_last=True)
    norm = state.reduce()
    state.discard()
    return Outcome(float(loss.negative_log_likelihood) / tokens, norm)


def device_of(state: TrainState) -> torch.device:
    """Return where a state computes."""
    return next(state.model.parameters()).device


def whole_weights(state: TrainState) -> dict[str, Tensor]:
    """Return the fp32 weights on the CPU, also where the workers share them out."""
    weights = {}
    for name, tensor in state.tensors().items():
        kind, _, own_name = name.partition(".")
        if kind == "weight":
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            weights[own_name] = whole.detach().cpu().contiguous()
    return weights


def report_of(failure: Failure, state: TrainState, job: TrainJob, dtype: str) -> dict:
    """Return all but tensors that it takes to compute a failure again, and where its examples come from."""
    return {
        "step": failure.step,
        "epoch": failure.cursor.epoch,
        "pool": failure.cursor.pool,
        "step_in_pool": failure.cursor.step,
        "lane": failure.lane.lane,
        "seed": failure.lane.seed,
        "loss": str(failure.outcome.loss),  # JSON has no NaN
        "gradient_norm": str(failure.outcome.gradient_norm),
        "dtype": dtype,
        "device": device_of(state).type,
        "architecture": asdict(state.model.transformer.architecture),
        "training": asdict(job.training),
        "examples": [origin._asdict() for origin in failure.origins],
    }


def write_dump(folder: str, batch: Batch, weights: dict[str, Tensor], report: dict) -> None:
    """Write what reproduce() needs; the report comes last."""
    tensors = {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}
    storage.publish_bytes(storage.join(folder, BATCH), safetensors.torch.save(tensors))
    storage.publish_bytes(storage.join(folder, WEIGHTS), safetensors.torch.save(weights))
    storage.publish_json(storage.join(folder, REPORT), report)


def reproduce(folder: str, device: str | None = None) -> Outcome:
    """Return loss and gradient norm of a dumped micro-batch, computed again; by default on the kind of device where
    it failed, on which dropout draws the same."""
    report = storage.read_json(storage.join(folder, REPORT))
    batch, weights = (
        safetensors.torch.load(storage.read_bytes(storage.join(folder, name))) for name in (BATCH, WEIGHTS)
    )
    transformer = Transformer(Architecture(**report["architecture"]))
    transformer.load_state_dict(weights)
    transformer.to(device or report["device"])
    state = Replicated(transformer, training_config(report["training"]), getattr(torch, report["dtype"]))
    state.model.train()
    return compute(state, LaneBatch(report["lane"], report["seed"], Batch(**batch)))


def training_config(values: dict[str, Any]) -> TrainingConfig:
    """Return settings as JSON keeps them as settings again."""
    workers = values["workers"]
    changed: dict[str, Any] = {
        "workers": WorkerRange(**workers) if isinstance(workers, dict) else workers,
        "adam_betas": tuple(values["adam_betas"]),
    }
    return TrainingConfig(**values | changed)


def describe(failure: Failure, folder: str, problem: str) -> str:
    """Return the message: what happened, where, and what to do; `problem` is why there is no dump."""
    cursor, outcome, origins = failure.cursor, failure.outcome, failure.origins
    named = "; ".join(
        f"{origin.shard} row {origin.shard_row} ({origin.file}, row {origin.row})"
        for origin in origins[:EXAMPLES_NAMED]
    )
    more = f"; and {len(origins) - EXAMPLES_NAMED} more" if len(origins) > EXAMPLES_NAMED else ""
    by_sum = "no lane by itself, but the sum of their gradients; the largest is of"
    dump = (
        f"{folder!r} could not be written ({problem}), and so holds nothing that computes it again"
        if problem
        else f"{folder!r} holds the micro-batch and the weights: python -c 'from tfray.training.failure import "
        f'reproduce; print(reproduce("{folder}"))\' computes it again'
    )
    return (
        f"training stopped at step {failure.step} (epoch {cursor.epoch}, pool {cursor.pool}, step {cursor.step} of "
        f"it): the loss or gradient is not finite; {by_sum if failure.is_sum else 'it is that of'} lane "
        f"{failure.lane.lane}, with loss {outcome.loss:.6g} and gradient norm {outcome.gradient_norm:.6g}, of "
        f"{len(origins)} examples: {named}{more}. {dump}. "
        "Lower training.learning_rate, lengthen training.warmup_steps, or set training.precision to fp32"
    )
