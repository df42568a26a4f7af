"""AdamW with decoupled weight decay over flat buffers."""

from __future__ import annotations

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
            tensors = (self.weights, gradient, self.exp_avg, self.exp_avg_sq)
            # torch's fused kernel: one pass over the four buffers, on a CPU as on a GPU
            torch._fused_adamw_(
                *([tensor[part]] for tensor in tensors),
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
