"""AdamW with decoupled weight decay over flat buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.config import TrainingConfig

EPSILON = 1e-9
"""As in Vaswani et al. 2017, section 5.3."""
NORM_ELEMENTS = 1 << 20
"""Of one piece's norm: over all weights of `big` at once, a sum of squares in fp32 comes out 3 % too small."""


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm of gradients together, summed piece by piece."""
    pieces = [piece for gradient in gradients for piece in gradient.reshape(-1).split(NORM_ELEMENTS)]
    return torch.nn.utils.get_total_norm(pieces)


class FlatAdamW:
    """The moments of a flat buffer of weights, of which the first `decayed` decay."""

    def __init__(self, weights: Tensor, decayed: int, config: TrainingConfig) -> None:
        self.weights, self.decayed, self.config = weights, decayed, config
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradient: Tensor, rate: float, shrink: float, updates: int) -> None:
        """Move the weights by the gradient times `shrink`, after so many updates; the gradient is spent."""
        tensors = (self.weights, gradient, self.exp_avg, self.exp_avg_sq)
        parts = ((slice(0, self.decayed), self.config.weight_decay), (slice(self.decayed, None), 0.0))
        for part, decay in parts:
            weights, gradients, exp_avgs, exp_avg_sqs = ([tensor[part]] for tensor in tensors)
            adamw(weights, gradients, exp_avgs, exp_avg_sqs, decay, rate, shrink, updates, betas=self.config.adam_betas)


@torch.no_grad()
def adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    decay: float,
    rate: float,
    shrink: float,
    updates: int,
    betas: tuple[float, float],
) -> None:
    """Move weights and moments by gradients times `shrink`, after so many updates (Loshchilov and Hutter 2019).

    The gradients are spent: they hold something else afterwards.
    """
    if not weights:
        return
    device = weights[0].device
    # torch's fused kernel: one pass over the four buffers, on a CPU as on a GPU
    torch._fused_adamw_(  # type: ignore[attr-defined]
        weights,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [torch.tensor(float(updates + 1), device=device)] * len(weights),
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
        grad_scale=torch.tensor(1 / shrink, device=device) if shrink != 1 else None,
    )
