"""Label-smoothed cross-entropy that never holds the logits of a whole micro-batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.model import native
from tfray.training.r_drop import neighbours_divergence

CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""Logits that exist at a time: small ones stay near the processor, large ones spare it sums of weight gradients."""

ROWS = 64
"""A product's rows are a multiple of this: oneDNN keeps kernels for every number of rows, megabytes of them."""


class Loss(NamedTuple):
    """Sums over the target tokens of a micro-batch."""

    objective: Tensor
    """What is minimized, in nats: cross-entropy against smoothed labels, the z-loss, and R-Drop's divergence."""
    negative_log_likelihood: Tensor
    """Cross-entropy against the labels alone, in nats; no gradient."""


def smoothed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    smoothing: float,
    z_loss: float = 0.0,
    r_drop: float = 0.0,
    is_compiled: bool = False,
) -> Loss:
    """Return the loss of projecting hidden (tokens, d_model) with weight (vocab, d_model), both of one dtype.

    The smoothed distribution is (1 - smoothing) on the label plus smoothing / vocab everywhere (Szegedy et al. 2016,
    section 7); the z-loss is the squared log of the softmax' denominator (Chowdhery et al. 2022, section 5); r_drop is
    the weight of the divergence of rows 0 and 1, 2 and 3, ... (r_drop.py), and has a part in training alone. With
    is_compiled, torch compiles what no kernel of ours does.
    """
    if not torch.is_grad_enabled():
        return evaluate_in_chunks(hidden, weight, labels, smoothing, z_loss)
    return Loss(*ChunkedCrossEntropy.apply(hidden, weight, labels, smoothing, z_loss, r_drop, is_compiled))


def chunk_rows(hidden: Tensor, weight: Tensor, twins: bool = False) -> tuple[int, int]:
    """Return the most rows of hidden states in a chunk, and the number that its rows are a multiple of."""
    fitting = CHUNK_BYTES[hidden.device.type] // (len(weight) * hidden.element_size())
    multiple = ROWS if fitting >= ROWS else 2 if twins else 1
    return max(multiple, fitting // multiple * multiple), multiple


def chunks(rows: int, most: int, multiple: int) -> Iterator[slice]:
    """Yield the rows whose logits are to exist at a time, in parts of about the same size."""
    units = math.ceil(rows / multiple)
    step = multiple * max(1, math.ceil(units / max(1, math.ceil(rows / most))))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, units * multiple))


def fill_up(states: Tensor, multiple: int) -> Tensor:
    """Return states with rows of zeros at the end, up to a multiple of rows."""
    spare = -len(states) % multiple
    return torch.cat([states, states.new_zeros(spare, *states.shape[1:])]) if spare else states


def evaluate_in_chunks(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Loss:
    """Return the same loss without gradients, and exact where training rounds probabilities to bf16."""
    objective, likelihood = torch.zeros(2, device=hidden.device)
    count, (most, multiple) = len(hidden), chunk_rows(hidden, weight)
    hidden = fill_up(hidden, multiple)
    for rows in chunks(count, most, multiple):
        label = labels[rows]
        logits = (hidden[rows] @ weight.T)[: len(label)].float()
        objective += F.cross_entropy(logits, label, reduction="sum", label_smoothing=smoothing)
        objective += z_loss * logits.logsumexp(-1).square().sum() if z_loss else 0
        likelihood += F.cross_entropy(logits, label, reduction="sum")
    return Loss(objective, likelihood)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass, a chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        smoothing: float,
        z_loss: float,
        r_drop: float,
        is_compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        count, (most, multiple) = len(hidden), chunk_rows(hidden, weight, twins=r_drop > 0)
        hidden, labels = fill_up(hidden, multiple), fill_up(labels, multiple)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient: Tensor | None = None
        objective, likelihood = hidden.new_zeros((2,), dtype=torch.float32)
        buffer: Tensor | None = None
        for rows in chunks(count, most, multiple):
            # One buffer for all chunks: new pages from the system cost more than the softmax.
            buffer = torch.mm(hidden[rows], weight.T) if buffer is None else buffer[: len(hidden[rows])]
            logits = torch.mm(hidden[rows], weight.T, out=buffer) if rows.start else buffer
            sums, divergence = turn_into_gradient(logits, labels[rows], smoothing, z_loss, r_drop, is_compiled)
            real = min(count - rows.start, len(logits))
            sums, logits[real:] = sums[:real], 0
            log_total, label_logit, all_logits = sums.unbind(-1)
            likelihood += (log_total - label_logit).sum()
            smoothed = log_total - (1 - smoothing) * label_logit - smoothing / len(weight) * all_logits
            objective += (smoothed + z_loss * log_total.square()).sum() + r_drop * divergence
            torch.mm(logits, weight, out=hidden_gradient[rows])
            part = logits.T @ hidden[rows]
            weight_gradient = part if weight_gradient is None else weight_gradient.float().add_(part)
        assert weight_gradient is not None
        ctx.save_for_backward(hidden_gradient[:count], weight_gradient)
        ctx.mark_non_differentiable(likelihood)
        return objective, likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0]
        return hidden_gradient * scale, weight_gradient * scale, None, None, None, None, None


def turn_into_gradient(
    logits: Tensor, labels: Tensor, smoothing: float, z_loss: float, r_drop: float, is_compiled: bool
) -> tuple[Tensor, Tensor]:
    """Put the objective's gradient in place of logits (rows, vocab).

    Returns (rows, 3) in fp32: the log of the softmax' denominator, the label's logit, the sum of all logits; and the
    sum of the divergences of pairs of rows, 0 without R-Drop.
    """
    kernel = native.find("twin_loss_gradient" if r_drop else "loss_gradient", logits)
    if kernel is None:
        turn = compiled_turn() if is_compiled else turn_by_torch
        return turn(logits, labels, smoothing, z_loss, r_drop)
    rows, vocab = logits.shape
    sums = logits.new_empty(rows, 3, dtype=torch.float32)
    if not r_drop:
        kernel(logits, labels, float(smoothing), float(z_loss), sums, rows, vocab)
        return sums, sums.new_zeros(())
    divergences = sums.new_empty(rows // 2)
    weights = float(smoothing), float(z_loss), float(r_drop)
    kernel(logits, labels, *weights, sums, divergences, len(divergences), vocab)
    return sums, divergences.sum()


def turn_by_torch(
    logits: Tensor, labels: Tensor, smoothing: float, z_loss: float, r_drop: float
) -> tuple[Tensor, Tensor]:
    """Do the same without a kernel."""
    divergence, pull = neighbours_divergence(logits) if r_drop else (logits.new_zeros(()), None)
    label_logit = logits.gather(-1, labels[:, None]).float()
    log_total = torch.logsumexp(logits.float(), -1, keepdim=True)
    sums = torch.cat([log_total, label_logit, logits.sum(-1, keepdim=True, dtype=torch.float32)], -1)
    smooth = smoothing / logits.shape[-1]
    label_gradient = (label_logit - log_total).exp() * (1 + 2 * z_loss * log_total) + smoothing - 1 - smooth
    torch.softmax(logits, -1, out=logits)
    if z_loss:
        logits *= (1 + 2 * z_loss * log_total).to(logits.dtype)
    logits -= smooth
    logits.scatter_(-1, labels[:, None], label_gradient.to(logits.dtype))
    if pull is not None:
        logits.add_(pull, alpha=r_drop)
    return sums, divergence


@functools.cache
def compiled_turn() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the same compiled: a few passes over the logits in place of a dozen, which would take a GPU about as long
    as the products do."""
    return torch.compile(turn_by_torch)
