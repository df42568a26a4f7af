"""Attention by torch's products, where the compiled kernels do not serve."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Products of few short queries take another way, whose last bits depend on the number of keys.
FEW_QUERIES, NARROW_HEAD = 4, 32


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
