"""Dropout that costs a multiplication: a random slice of a mask made beforehand.

Drawing fresh random bits for every activation is a third of a small model's training step on a
CPU. A slice at a random offset of one large mask is as random per element and step; on a GPU the
library's kernel is faster and is used.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOL_SIZE = 1 << 24


@functools.cache
def mask_pool(rate: float, dtype: torch.dtype) -> Tensor:
    """Return POOL_SIZE values, 0 with probability `rate` and else 1 / (1 - rate)."""
    generator = torch.Generator().manual_seed(20_170_612)
    keep = torch.rand(POOL_SIZE, generator=generator) >= rate
    return (keep / (1 - rate)).to(dtype)


class Dropout(nn.Module):
    """Zero a share of the activations while training, and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return hidden
        return hidden * self.mask(hidden) if fits_pool(hidden) else F.dropout(hidden, self.rate)

    def add(self, residual: Tensor, hidden: Tensor) -> Tensor:
        """Return the residual plus what is left of hidden, in one pass."""
        if self.training and self.rate and fits_pool(hidden):
            return torch.addcmul(residual, hidden, self.mask(hidden))
        return residual + self(hidden)

    def mask(self, hidden: Tensor) -> Tensor:
        """Return the next slice of the pool."""
        count = hidden.numel()
        offset = int(torch.randint(POOL_SIZE - count, ()))
        return mask_pool(self.rate, hidden.dtype)[offset : offset + count].view(hidden.shape)


def fits_pool(hidden: Tensor) -> bool:
    """Say whether a slice of the pool is to mask these states."""
    fits = hidden.device.type == "cpu" and hidden.numel() <= POOL_SIZE // 2
    return fits and not torch.compiler.is_compiling()
