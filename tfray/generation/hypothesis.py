"""What search returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Hypothesis(NamedTuple):
    """A target that the search found."""

    ids: list[int]
    """Tokens without bos and eos."""
    score: float
    """Natural logarithm of the target's probability, eos included; not normalized by length."""
    is_finished: bool
    """False where the longest length was reached before eos."""


def next_log_probs(logits: Tensor, pad_id: int, bos_id: int) -> Tensor:
    """Return log-probabilities of the next token in fp32; pad and bos are never a next token."""
    log_probs = logits.float().log_softmax(-1)
    log_probs[:, [pad_id, bos_id]] = float("-inf")
    return log_probs
