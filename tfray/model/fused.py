"""Attention and layer norm for training on a CPU by the kernels of kernels.c, each with its own backward pass.

torch's attention at sentence lengths spends its time in copies between (batch, length, heads) and (batch, heads,
length) and in matrix products too small to be fast; its layer norm reads memory three times backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tfray.model import native

LONGEST = 256
"""Positions up to which attention is done in a processor's cache."""
VECTOR_WIDTH = 16


def can_attend(query: Tensor, keys: Tensor, mask: Tensor | None) -> bool:
    """Say whether the kernel knows these shapes: (batch, heads, length, head_dim), and a mask of keys alone or none."""
    is_known = mask is None or (mask.dim() == 4 and mask.shape[1:3] == (1, 1))
    fits = max(query.shape[2], keys.shape[2]) <= LONGEST and query.shape[3] % VECTOR_WIDTH == 0
    return is_known and fits and native.find("attend", query) is not None


class FusedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(head_dim)) v of strided heads; what comes out lies as (batch, length, heads, head_dim)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        parts = [compact(states) for states in (query, keys, values)]
        seen = None if mask is None else mask.expand(len(query), 1, 1, keys.shape[2]).contiguous()
        ctx.save_for_backward(*parts, seen)
        ctx.causal = causal
        output = new_heads(query)
        run("attend", parts, seen, causal, [output])
        return output

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        *parts, seen = ctx.saved_tensors
        gradients = [new_heads(states) for states in parts]
        run("attend_backward", parts, seen, ctx.causal, [compact(above[0]), *gradients])
        return (*gradients, None, None)


def run(name: str, parts: list[Tensor], seen: Tensor | None, causal: bool, others: list[Tensor]) -> None:
    """Call an attention kernel on queries, keys and values, and what follows the mask in its arguments."""
    kernel = native.find(name, parts[0])
    assert kernel is not None
    (batch, heads, queries, size), keys = parts[0].shape, parts[1].shape[2]
    strides = torch.tensor([states.stride()[:3] for states in (*parts, *others)])
    kernel(*parts, seen, int(causal), *others, strides, batch, heads, queries, keys, size)


def compact(states: Tensor) -> Tensor:
    """Return states whose last dimension is dense, as the kernels read them."""
    return states if states.stride(-1) == 1 else states.contiguous()


def new_heads(like: Tensor) -> Tensor:
    """Return an empty (batch, heads, length, head_dim) that lies as (batch, length, heads, head_dim)."""
    batch, heads, length, size = like.shape
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm over the last dimension."""

    def forward(self, input: Tensor) -> Tensor:
        is_training = torch.is_grad_enabled() and input.requires_grad and input.dtype == self.weight.dtype
        if is_training and native.find("normalize", input) is not None:
            return FusedLayerNorm.apply(input, self.weight, self.bias, self.eps)
        return super().forward(input)


class FusedLayerNorm(torch.autograd.Function):
    """Layer norm with its backward pass in one reading of memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        states, width = states.contiguous(), states.shape[-1]
        rows = states.numel() // width
        output, (means, factors) = torch.empty_like(states), states.new_empty(2, rows, dtype=torch.float32)
        kernel = native.find("normalize", states)
        assert kernel is not None
        kernel(states, weight, bias, eps, output, means, factors, rows, width)
        ctx.save_for_backward(states, weight, means, factors)
        return output

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, weight, means, factors = ctx.saved_tensors
        gradient, width, parts = above[0].contiguous(), states.shape[-1], torch.get_num_threads()
        states_gradient, sums = torch.empty_like(states), states.new_empty(parts, 2, width, dtype=torch.float32)
        kernel = native.find("normalize_backward", states)
        assert kernel is not None
        kernel(gradient, states, weight, means, factors, states_gradient, sums, parts, len(means), width)
        weight_gradient, bias_gradient = sums.sum(0).to(weight.dtype)
        return states_gradient, weight_gradient, bias_gradient, None
