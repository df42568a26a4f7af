"""One optimizer step: micro-batches -> one update."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.training.state import TrainState
from tfray.training.workers import sum_over_workers, world_size


class SpikeJudge(Protocol):
    """Says which steps are not to count."""

    def judge(self, norm: float, loss: float) -> bool:
        """Return True where a step with this gradient norm and loss per token is a spike."""
        ...


class StepMetrics(NamedTuple):
    """What one step did, summed over all workers where they count."""

    negative_log_likelihood: float
    target_tokens: int
    source_tokens: int
    padded_tokens: int
    gradient_norm: float
    is_skipped: bool
    """True where the weights stayed as they were: a spike, or a loss or gradient that is not finite."""

    @property
    def is_finite(self) -> bool:
        """Say whether loss and gradient are numbers, the same on every worker."""
        return math.isfinite(self.negative_log_likelihood + self.gradient_norm)


def train_step(
    state: TrainState,
    micro_batches: list[Batch],
    seeds: list[int],
    rate: float,
    config: TrainingConfig,
    spikes: SpikeJudge | None = None,
) -> StepMetrics:
    """Update the state by one step over all workers' micro-batches (on the CPU); `seeds` are those of dropout."""
    target, source, padded = count_tokens(micro_batches)
    likelihoods = []
    for index, (batch, seed) in enumerate(zip(micro_batches, seeds, strict=True)):
        torch.manual_seed(seed)
        loss = state.accumulate(batch, 1 / target, is_last=index == len(micro_batches) - 1)
        likelihoods.append(loss.negative_log_likelihood)
    norm = state.reduce()
    likelihood = torch.stack(likelihoods).cpu().double().sum()
    # Workers with other processors may round the norm otherwise: all judge by the mean of what they have.
    total, norm = sum_over_workers(torch.stack([likelihood, torch.tensor(norm / world_size())])).tolist()
    is_skipped = not math.isfinite(total + norm) or (spikes is not None and spikes.judge(norm, total / target))
    if is_skipped:
        state.discard()
    else:
        state.update(rate, min(1.0, config.gradient_clip / norm) if config.gradient_clip and norm else 1.0)
    return StepMetrics(total, target, source, padded, norm, is_skipped)


def count_tokens(micro_batches: list[Batch]) -> tuple[int, int, int]:
    """Return target, source and padded tokens of a step, over all workers."""
    counts = [(b.target_tokens, b.source_tokens, b.padded_tokens) for b in micro_batches]
    target, source, padded = sum_over_workers(torch.tensor(counts, dtype=torch.float64).sum(0)).tolist()
    return int(target), int(source), int(padded)
