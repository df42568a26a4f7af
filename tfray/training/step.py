"""One optimiser step: micro-batches -> one update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer
from tfray.training.loss import Loss, smoothed_cross_entropy


class TrainingModel(nn.Module):
    """The Transformer with its loss, so that one forward holds all that a step computes."""

    def __init__(self, transformer: Transformer, label_smoothing: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.transformer = transformer
        self.label_smoothing = label_smoothing
        self.dtype = dtype

    def forward(self, batch: Batch) -> Loss:
        """Return the loss sums over the micro-batch's target tokens."""
        transformer = self.transformer
        with torch.autocast(batch.source_ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = transformer.decode(batch.target_ids, transformer.encode(batch.source_ids))
        is_token = batch.label_ids != transformer.architecture.pad_id
        rows = hidden[is_token].to(self.dtype)
        labels = batch.label_ids[is_token]
        return smoothed_cross_entropy(rows, transformer.output_weight, labels, self.label_smoothing)


@dataclass
class TrainState:
    """What a step changes."""

    model: nn.Module
    """A TrainingModel, or DDP around one."""
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    """Moving average of the weights; empty when switched off."""

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())


class StepMetrics(NamedTuple):
    """What one step did, summed over all workers where they count."""

    negative_log_likelihood: float
    target_tokens: int
    source_tokens: int
    padded_tokens: int
    gradient_norm: float


def train_step(
    state: TrainState, micro_batches: list[Batch], seeds: list[int], rate: float, config: TrainingConfig
) -> StepMetrics:
    """Update the state by one step over all workers' micro-batches; `seeds` are those of dropout."""
    counts = count_tokens(micro_batches)
    scale = world_size() / counts[0]  # DDP averages over workers
    likelihood = torch.zeros(())
    for index, (batch, seed) in enumerate(zip(micro_batches, seeds, strict=True)):
        torch.manual_seed(seed)
        with reduce_on_last(state.model, index == len(micro_batches) - 1):
            loss = state.model(batch)
            (loss.objective * scale).backward()
        likelihood += loss.negative_log_likelihood.detach().cpu()
    norm = clip_gradients(state.parameters, config.gradient_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    update_average(state, config.ema_decay)
    return StepMetrics(float(sum_over_workers(likelihood)), *counts, norm)


def count_tokens(micro_batches: list[Batch]) -> tuple[int, int, int]:
    """Return target, source and padded tokens of a step, over all workers."""
    counts = [(b.target_tokens, b.source_tokens, b.padded_tokens) for b in micro_batches]
    total = sum_over_workers(torch.tensor(counts, dtype=torch.float64).sum(0))
    target, source, padded = (int(count) for count in total)
    return target, source, padded


@contextlib.contextmanager
def reduce_on_last(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Let DDP reduce gradients once a step, after the last micro-batch."""
    if is_last or not isinstance(model, nn.parallel.DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale gradients down to a norm of at most `limit` (0: leave them); return the norm before."""
    return float(nn.utils.clip_grad_norm_(parameters, limit or float("inf"), foreach=True))


@torch.no_grad()
def update_average(state: TrainState, decay: float) -> None:
    """Move the average of the weights towards the weights."""
    if state.average:
        torch._foreach_lerp_(state.average, state.parameters, 1 - decay)  # type: ignore[attr-defined]


def world_size() -> int:
    """Return the number of training workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_workers(value: Tensor) -> Tensor:
    """Return a CPU tensor summed over all workers."""
    if world_size() == 1:
        return value
    device = torch.device("cuda") if dist.get_backend() == "nccl" else value.device
    total = value.to(device)
    dist.all_reduce(total)
    return total.cpu()
