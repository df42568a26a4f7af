"""The best tokens of each row of scores, exactly: equal scores in the order of their ids.

The compiled kernel looks into few blocks of the vocabulary where it is told what none of a block's scores is above:
`bounds`, (rows, blocks).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tfray.generation import native

BLOCK = 64
"""Tokens, as in kernels.c."""


def best_token(scores: Tensor, bounds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the highest score of each row and its first id, (rows) each.

    In two stages, of blocks and inside the best one: on a CPU `max` with indices is ten times slower.
    """
    rows, vocab = scores.shape
    kernels = native.kernels(scores.device)
    if kernels is not None:
        values, ids = select_natively(kernels, scores, 1, bounds)
        return values[:, 0], ids[:, 0]
    if scores.device.type != "cpu" or vocab < 4 * BLOCK:
        found = scores.max(-1)
        return found.values, found.indices
    whole = vocab // BLOCK * BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
    best = blocks.amax(-1).max(-1)
    inside = blocks[torch.arange(rows, device=scores.device), best.indices].max(-1)
    values, ids = inside.values, best.indices * BLOCK + inside.indices
    if whole < vocab:
        tail = scores[:, whole:].max(-1)
        is_better = tail.values > values
        values = torch.where(is_better, tail.values, values)
        ids = torch.where(is_better, tail.indices + whole, ids)
    return values, ids


def best_tokens(scores: Tensor, count: int, bounds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each row and their ids, the best first, (rows, count) each."""
    rows, vocab = scores.shape
    kernels = native.kernels(scores.device)
    if kernels is not None:
        return select_natively(kernels, scores, min(count, vocab), bounds)
    if vocab < 4 * BLOCK or count * BLOCK > vocab // 2:
        return ordered_top(scores, torch.arange(vocab, device=scores.device).expand(rows, -1), count)
    whole = vocab // BLOCK * BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
    number = torch.arange(blocks.shape[1], device=scores.device)
    # The best tokens lie in the blocks with the best maxima; of equal ones in the first.
    _, chosen = ordered_top(blocks.amax(-1), number.expand(rows, -1), count)
    values = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    ids = (chosen[..., None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    if whole < vocab:
        values = torch.cat([values, scores[:, whole:]], dim=1)
        ids = torch.cat([ids, torch.arange(whole, vocab, device=scores.device).expand(rows, -1)], dim=1)
    return ordered_top(values, ids, count)


def select_natively(kernels: ctypes.CDLL, scores: Tensor, count: int, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the same by the compiled kernel."""
    scores = scores.contiguous()
    values = scores.new_empty(len(scores), count)
    ids = torch.empty_like(values, dtype=torch.long)
    native.call(kernels.best_tokens, scores, bounds, values, ids, *scores.shape, count)
    return values, ids


def ordered_top(values: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest values and their ids, ordered by value and then by id."""
    count = min(count, values.shape[1])
    keys = (sortable(values) << 24) + ((1 << 24) - 1 - ids)
    places = keys.topk(count, dim=-1).indices
    return values.gather(1, places), ids.gather(1, places)


def sortable(values: Tensor) -> Tensor:
    """Return whole numbers in the order of the values."""
    bits = values.float().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
