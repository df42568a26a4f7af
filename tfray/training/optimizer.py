"""AdamW with decoupled weight decay over flat buffers, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tfray.config import TrainingConfig

EPSILON = 1e-9


class FlatAdamW:
    """The moments of a flat buffer of weights, of which the first `decayed` decay (Loshchilov and Hutter 2019)."""

    def __init__(self, weights: Tensor, decayed: int, config: TrainingConfig) -> None:
        self.weights, self.decayed, self.config = weights, decayed, config
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights), torch.zeros_like(weights)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float, shrink: float, updates: int) -> None:
        """Move the weights by the gradient times `shrink`, after so many updates; the gradient is spent."""
        count = torch.tensor(float(updates + 1), device=self.weights.device)
        divisor = torch.tensor(1 / shrink, device=self.weights.device) if shrink != 1 else None
        parts = ((slice(0, self.decayed), self.config.weight_decay), (slice(self.decayed, None), 0.0))
        for part, decay in parts:
            # torch's fused kernel: one pass over the four buffers, on a CPU as on a GPU
            torch._fused_adamw_(  # type: ignore[attr-defined]
                [self.weights[part]],
                [gradient[part]],
                [self.exp_avg[part]],
                [self.exp_avg_sq[part]],
                [],
                [count],
                lr=rate,
                beta1=self.config.adam_betas[0],
                beta2=self.config.adam_betas[1],
                weight_decay=decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step, counted from 0, of total_steps."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(max(1, warmup) / (step + 1))
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
