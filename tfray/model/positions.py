"""Where a token stands: sinusoids added to the embedding, or rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequencies(width: int) -> Tensor:
    """Return 1 / 10000^(2i / width) for each pair i of dimensions, (width / 2)."""
    return torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, dtype=torch.float32) / width)


def sinusoids(start: int, length: int, d_model: int) -> Tensor:
    """Return the positional encoding of positions start..start+length, (length, d_model).

    "Attention Is All You Need", section 3.5: sine in even dimensions, cosine in odd ones.
    """
    angles = torch.outer(torch.arange(start, start + length, dtype=torch.float32), frequencies(d_model))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotate(states: Tensor, start: int) -> Tensor:
    """Return queries or keys rotated by their positions, (batch, heads, length, head_dim).

    RoFormer (Su et al. 2021), equation 34, with the pairs (i, i + head_dim / 2).
    """
    length, head_dim = states.shape[-2:]
    angles = torch.outer(torch.arange(start, start + length, dtype=torch.float32), frequencies(head_dim))
    cosine, sine = (table.to(states) for table in (angles.cos(), angles.sin()))
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
