"""Where a token stands: sinusoids added to the embedding, or rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def angles_of(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return position / 10000^(2i / width) for the first positions and each pair i of dimensions,
    (length, width / 2)."""
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    frequencies = torch.exp(-math.log(10_000.0) * pairs / width)
    return torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)


def sinusoids(length: int, d_model: int, device: torch.device | None = None) -> Tensor:
    """Return the positional encoding of the first positions, (length, d_model).

    "Attention Is All You Need", section 3.5: sine in even dimensions, cosine in odd ones.
    """
    angles = angles_of(length, d_model, device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def positions_in(segments: Tensor) -> Tensor:
    """Return where each token stands in its segment, from 0, (batch, length); a segment's tokens are neighbours."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values


def rotate(states: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return queries or keys rotated by their positions, (batch, heads, length, head_dim).

    The positions are 0, 1, ..., or those given, (batch, length), of which each is below the length.

    RoFormer (Su et al. 2021), equation 34, with the pairs (i, i + head_dim / 2).
    """
    length, head_dim = states.shape[-2:]
    angles = angles_of(length, head_dim, states.device)
    if positions is not None:
        angles = angles[positions][:, None]  # (batch, 1, length, head_dim / 2)
    cosine, sine = (table.to(states) for table in (angles.cos(), angles.sin()))
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
