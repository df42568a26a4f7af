"""Label-smoothed cross-entropy that never holds the logits of a whole micro-batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ROWS = 512


class Loss(NamedTuple):
    """Sums over the target tokens of a micro-batch."""

    objective: Tensor
    """What is minimized: cross-entropy against smoothed labels, in nats."""
    negative_log_likelihood: Tensor
    """Cross-entropy against the labels alone, in nats; no gradient."""


def smoothed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Loss:
    """Return the loss of projecting hidden (tokens, d_model) with weight (vocab, d_model).

    The smoothed distribution is (1 - smoothing) on the label plus smoothing / vocab everywhere
    (Szegedy et al. 2016, section 7).
    """
    if not torch.is_grad_enabled():
        return evaluate_in_chunks(hidden, weight, labels, smoothing)
    return Loss(*ChunkedCrossEntropy.apply(hidden, weight, labels, smoothing))


def evaluate_in_chunks(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Loss:
    """Return the same loss without gradients, and exact where training rounds probabilities to bf16."""
    narrow = weight.to(hidden.dtype)
    totals = torch.zeros(2, device=hidden.device)
    for start in range(0, len(hidden), CHUNK_ROWS):
        logits = (hidden[start : start + CHUNK_ROWS] @ narrow.T).float()
        label = labels[start : start + CHUNK_ROWS]
        totals[0] += F.cross_entropy(logits, label, reduction="sum", label_smoothing=smoothing)
        totals[1] += F.cross_entropy(logits, label, reduction="sum")
    return Loss(*totals)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass, a chunk of tokens at a time.

    The uniform part of the smoothed labels is linear in the logits, so its value and its gradients
    are formed once from sums of rows and weights, without another pass over (tokens, vocab).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = weight.to(hidden.dtype)
            uniform = smoothing / len(weight)
            weight_sum = weight.sum(0)
            hidden_sum = hidden.sum(0, dtype=torch.float32)
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros_like(weight)
            likelihood, log_totals = hidden.new_zeros((2,), dtype=torch.float32)
            for start in range(0, len(hidden), CHUNK_ROWS):
                rows = hidden[start : start + CHUNK_ROWS]
                label = labels[start : start + CHUNK_ROWS, None]
                logits = rows @ narrow.T  # (chunk, vocab)
                label_logits = logits.gather(-1, label).float()
                gradient = logits.softmax(-1)
                label_log_probs = gradient.gather(-1, label).float().clamp_min(1e-38).log()
                likelihood -= label_log_probs.sum()
                log_totals += (label_logits - label_log_probs).sum()
                gradient.scatter_add_(-1, label, gradient.new_full(label.shape, smoothing - 1))
                hidden_gradient[start : start + CHUNK_ROWS] = gradient @ narrow
                weight_gradient += gradient.T @ rows
            hidden_gradient -= uniform * weight_sum
            weight_gradient -= uniform * hidden_sum
            objective = (1 - smoothing) * likelihood + smoothing * log_totals - uniform * (hidden_sum @ weight_sum)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(likelihood)
        return objective, likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale.to(hidden_gradient.dtype), weight_gradient * scale, None, None
