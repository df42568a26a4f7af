"""Attention over whole sequences: by torch's products, or by the compiled kernels where they serve."""

from __future__ import annotations

import ctypes
import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.generation import native

# Products of few short queries take another way, whose last bits depend on the number of keys.
FEW_QUERIES, NARROW_HEAD = 4, 32
MANY_QUERIES = 96  # a longer source is worth matrix products of its own


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return what queries gather (rows x queries, d_model), and their weights (rows, heads, queries, keys).

    query: (rows, queries, heads, head_dim), scaled; keys and values: (rows, heads, keys, head_dim);
    bias: (rows, queries or 1, keys), 0 where a query may look and -inf elsewhere.
    """
    rows, queries, heads, head_dim = query.shape
    flat = query.transpose(1, 2).reshape(rows * heads, queries, head_dim)
    if queries < FEW_QUERIES and head_dim < NARROW_HEAD and query.device.type == "cpu":
        flat = F.pad(flat, (0, 0, 0, FEW_QUERIES - queries))
    scores = torch.bmm(flat, keys.flatten(0, 1).transpose(1, 2))[:, :queries].unflatten(0, (rows, heads))
    weights = scores.add_(bias[:, None]).softmax(-1)
    gathered = torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(rows, heads, queries, head_dim)
    return gathered.transpose(1, 2).reshape(rows * queries, heads * head_dim), weights


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the mask is True and -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def attend_sources(kernels: ctypes.CDLL, joint: Tensor, lengths: list[int], heads: int, head_dim: int) -> Tensor:
    """Return what self-attention gathers of sources without padding, one after another, (tokens, d_model); joint:
    (tokens, 3 x d_model).

    Which way a source goes follows from its own length: its answer must not depend on its companions.
    """
    parts, start = [], 0
    for is_long, group in itertools.groupby(lengths, lambda length: length > MANY_QUERIES):
        own = list(group)
        states = joint[start : start + sum(own)]
        if is_long:
            parts += [attend_alone(source, heads, head_dim) for source in states.split(own)]
        else:
            parts.append(attend_short(kernels, states, own, heads, head_dim))
        start += len(states)
    return torch.cat(parts)


def attend_short(
    kernels: ctypes.CDLL, joint: Tensor, lengths: list[int], heads: int, head_dim: int, is_causal: bool = False
) -> Tensor:
    """Return what self-attention gathers of short sequences, by the kernels."""
    output = joint.new_empty(len(joint), heads * head_dim)
    starts = torch.tensor([0, *itertools.accumulate(lengths)], device=joint.device)
    shape = len(lengths), heads, head_dim, max(lengths), is_causal
    native.call(kernels.attend_sequences, joint, starts, output, *shape)
    return output


def attend_alone(joint: Tensor, heads: int, head_dim: int) -> Tensor:
    """Return what self-attention gathers of one source, by torch's products."""
    query, keys, values = joint.view(1, -1, 3, heads, head_dim).unbind(2)
    return attend(query, keys.transpose(1, 2), values.transpose(1, 2), joint.new_zeros(1, 1, len(joint)))[0]


def attend_targets(kernels: ctypes.CDLL, joint: Tensor, shape: tuple[int, int], heads: int, head_dim: int) -> Tensor:
    """Return what causal self-attention gathers of (rows, length) tokens, as a search does it, to the last bit."""
    rows, length = shape
    return attend_short(kernels, joint, [length] * rows, heads, head_dim, is_causal=True)
