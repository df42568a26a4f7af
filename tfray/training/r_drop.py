"""R-Drop (Liang et al. 2021): two predictions of the same tokens under different dropout are pulled together.

The micro-batch goes through the network once, with every row twice. The paper's objective is
`CE(p) + CE(q) + weight * (KL(p, q) + KL(q, p)) / 2`; ours is half of that, so that losses and gradients have the size
that they have without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.batches.batch import Batch


def twice(batch: Batch) -> Batch:
    """Return a batch with all its rows two times, one after the other."""
    return batch.each(lambda tensor: torch.cat([tensor, tensor]))


def side_by_side(states: Tensor) -> Tensor:
    """Return rows 0, n, 1, n + 1, ... of 2n: a token's two predictions become neighbours, and stay in one chunk."""
    return states.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def neighbours_divergence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over pairs of rows (0 and 1, 2 and 3, ...) of (KL(p, q) + KL(q, p)) / 2, and its gradient by the
    logits, (rows, vocab).

    With d = p's logits less q's it is sum((p - q) * d) / 2: the softmax' denominators cancel out.
    """
    pairs = logits.softmax(-1).unflatten(0, (-1, 2))  # (pairs, 2, vocab)
    differences = -logits.unflatten(0, (-1, 2)).diff(dim=1)  # d
    apart = -pairs.diff(dim=1)  # p - q
    means = (pairs * differences).sum(-1, keepdim=True, dtype=differences.dtype)  # of d, under p and under q
    gradient = pairs * (differences - means)
    gradient[:, 1].neg_()
    gradient[:, :1] += apart
    gradient[:, 1:] -= apart
    divergence = (means[:, 0] - means[:, 1]).float().sum() / 2
    return divergence, gradient.mul_(0.5).flatten(0, 1)
