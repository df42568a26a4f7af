"""Label-smoothed cross-entropy that never holds the logits of a whole micro-batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.training.r_drop import neighbours_divergence

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Logits that exist at a time: small ones stay near the processor, large ones spare it sums of weight gradients."""


class Loss(NamedTuple):
    """Sums over the target tokens of a micro-batch."""

    objective: Tensor
    """What is minimized, in nats: cross-entropy against smoothed labels, and the z-loss."""
    negative_log_likelihood: Tensor
    """Cross-entropy against the labels alone, in nats; no gradient."""


def smoothed_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float = 0.0, r_drop: float = 0.0
) -> Loss:
    """Return the loss of projecting hidden (tokens, d_model) with weight (vocab, d_model), both of one dtype.

    The smoothed distribution is (1 - smoothing) on the label plus smoothing / vocab everywhere (Szegedy et al. 2016,
    section 7); the z-loss is the squared log of the softmax' denominator (Chowdhery et al. 2022, section 5); r_drop is
    the weight of the divergence of rows 0 and 1, 2 and 3, ... (r_drop.py), and has a part in training alone.
    """
    if not torch.is_grad_enabled():
        return evaluate_in_chunks(hidden, weight, labels, smoothing, z_loss)
    return Loss(*ChunkedCrossEntropy.apply(hidden, weight, labels, smoothing, z_loss, r_drop))


def chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield rows of hidden states whose logits are to exist at a time, in parts of about the same, even size."""
    fitting = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"]) // (len(weight) * hidden.element_size())
    count = max(1, math.ceil(len(hidden) / max(1, fitting)))
    step = max(2, 2 * math.ceil(len(hidden) / count / 2))
    for start in range(0, len(hidden), step):
        yield slice(start, start + step)


def evaluate_in_chunks(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Loss:
    """Return the same loss without gradients, and exact where training rounds probabilities to bf16."""
    objective, likelihood = torch.zeros(2, device=hidden.device)
    for rows in chunks(hidden, weight):
        logits = (hidden[rows] @ weight.T).float()
        objective += F.cross_entropy(logits, labels[rows], reduction="sum", label_smoothing=smoothing)
        objective += z_loss * logits.logsumexp(-1).square().sum() if z_loss else 0
        likelihood += F.cross_entropy(logits, labels[rows], reduction="sum")
    return Loss(objective, likelihood)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass, a chunk of tokens at a time.

    The uniform part of the smoothed labels is linear in the logits, so its value and its gradients
    are formed once from sums of rows and weights, without another pass over (tokens, vocab).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float, r_drop: float
    ) -> tuple[Tensor, Tensor]:
        uniform = smoothing / len(weight)
        hidden_sum, weight_sum = (states.sum(0, dtype=torch.float32) for states in (hidden, weight))
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        likelihood, log_totals, others = hidden.new_zeros((3,), dtype=torch.float32)
        for rows in chunks(hidden, weight):
            label = labels[rows, None]
            logits = hidden[rows] @ weight.T  # (chunk, vocab)
            label_logits = logits.gather(-1, label).float()
            gradient = logits.softmax(-1)
            label_log_probs = gradient.gather(-1, label).float().clamp_min(1e-38).log()
            log_total = label_logits - label_log_probs
            likelihood -= label_log_probs.sum()
            log_totals += log_total.sum()
            divergence, pull = neighbours_divergence(logits, gradient) if r_drop else (0.0, None)
            if z_loss:
                others += z_loss * log_total.square().sum()
                gradient *= (1 + 2 * z_loss * log_total).to(gradient.dtype)
            if pull is not None:
                others += r_drop * divergence
                gradient.add_(pull, alpha=r_drop)
            gradient.scatter_add_(-1, label, gradient.new_full(label.shape, smoothing - 1))
            torch.mm(gradient, weight, out=hidden_gradient[rows])
            weight_gradient += gradient.T @ hidden[rows]
        hidden_gradient -= uniform * weight_sum
        weight_gradient -= uniform * hidden_sum
        objective = (1 - smoothing) * likelihood + smoothing * log_totals - uniform * (hidden_sum @ weight_sum)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(likelihood)
        return objective + others, likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale.to(hidden_gradient.dtype), weight_gradient * scale, None, None, None, None
