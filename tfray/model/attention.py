"""Multi-head attention: every position gathers from others what its query asks for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfray.model.architecture import Architecture
from tfray.model.fused import FusedAttention, can_attend
from tfray.model.positions import rotate


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v, (batch, heads, query, head_dim).

    `mask` is True where a query may look, and broadcasts to (batch, heads, query, key).
    """
    if query.device.type != "cpu" or not query.requires_grad:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
    if can_attend(query, keys, mask):
        return FusedAttention.apply(query, keys, values, mask, causal)
    return attend_by_products(query, keys, values, mask, causal)


def avoid_cudnn_attention() -> None:
    """Keep torch, in this process, from cuDNN's attention, which it prefers on Hopper: that makes a plan for every new
    shape, for tens of milliseconds and more, and behind a mask its gradients may be NaN (pytorch issue 196678)."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def attend_by_products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return the same from plain matrix products.

    On a CPU the fused kernel's backward is about ten times slower at sentence lengths in bf16.
    """
    if causal:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    mask = torch.ones((), dtype=torch.bool) if mask is None else mask
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    if bias.dim() == 4:  # a mask of the batch: one for each of its heads
        bias = bias.expand(-1, query.shape[1], -1, -1).flatten(0, 1)
    flat_query, flat_keys, flat_values = (states.flatten(0, 1) for states in (query, keys, values))
    scores = torch.baddbmm(bias, flat_query, flat_keys.transpose(1, 2), alpha=1 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)
    return torch.bmm(weights, flat_values).unflatten(0, query.shape[:2])


def same_segment(queries: Tensor, keys: Tensor) -> Tensor:
    """Return whether a query's token and a key's are of the same segment, (batch, query, key).

    Padding, segment 0, looks everywhere: a row of a softmax must hold something.
    """
    return (queries[:, :, None] == keys[:, None, :]) | (queries == 0)[:, :, None]


def over_heads(mask: Tensor) -> Tensor:
    """Return a mask of keys, (batch, key), or of queries and keys, (batch, query, key), with a place for the heads."""
    return mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]


class MultiHeadAttention(nn.Module):
    """What self- and cross-attention share: heads, and the output projection."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.num_heads = architecture.num_heads
        self.output = nn.Linear(architecture.d_model, architecture.d_model)

    def split(self, states: Tensor) -> Tensor:
        """Return (batch, length, d_model) as (batch, heads, length, head_dim)."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, states: Tensor) -> Tensor:
        """Return (batch, heads, length, head_dim) projected to (batch, length, d_model)."""
        return self.output(states.transpose(1, 2).flatten(2))


class SelfAttention(MultiHeadAttention):
    """Each position looks at positions of its own sequence."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.is_rotary = architecture.positions == "rotary"
        self.query_key_value = nn.Linear(architecture.d_model, 3 * architecture.d_model)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return (batch, length, d_model); positions are 0, 1, ..., or the ones given."""
        query, keys, values = (self.split(part) for part in self.query_key_value(hidden).chunk(3, dim=-1))
        if self.is_rotary:
            query, keys = rotate(query, positions), rotate(keys, positions)
        return self.merge(attend(query, keys, values, mask, causal))


class CrossAttention(MultiHeadAttention):
    """Each target position looks at the source."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.query = nn.Linear(architecture.d_model, architecture.d_model)
        self.key_value = nn.Linear(architecture.d_model, 2 * architecture.d_model)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory's keys and values, each (batch, heads, source, head_dim)."""
        keys, values = (self.split(part) for part in self.key_value(memory).chunk(2, dim=-1))
        return keys, values

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, length, d_model) from what the source says."""
        return self.merge(attend(self.split(self.query(hidden)), keys, values, over_heads(mask)))
