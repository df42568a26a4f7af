"""Chance that belongs to a row: a number from (seed, row, sample, step), and a token drawn by it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tfray.config import GenerationConfig

GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64


def number_of(*parts: int | str) -> int:
    """Return a number of 64 bits for what parts name together, such as a row of a file: the same ever after."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def uniform(seed: int, rows: Tensor, samples: Tensor, steps: Tensor) -> Tensor:
    """Return numbers in [0, 1) that follow from these four alone, in fp64 (splitmix64, Steele et al. 2014)."""
    state = torch.full_like(rows, seed)
    for part in (rows, samples, steps):
        state = mix(state + (part + 1) * GOLDEN)
    return shift(state, 11).double() / 2**53


def mix(state: Tensor) -> Tensor:
    """Return scrambled 64-bit numbers; products wrap around."""
    state = (state ^ shift(state, 30)) * FIRST
    state = (state ^ shift(state, 27)) * SECOND
    return state ^ shift(state, 31)


def shift(state: Tensor, bits: int) -> Tensor:
    """Return 64-bit numbers shifted to the right, zeros entering at the left."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def keep_likely(log_probs: Tensor, config: GenerationConfig) -> Tensor:
    """Return log-probabilities at the temperature, -inf outside top-k, min-p and top-p, in this order.

    top-k keeps the k most probable (Fan et al. 2018), min-p those of at least min_p times the best
    (Nguyen et al. 2024), top-p the smallest set of the best with probability top_p (Holtzman et al. 2020).
    Equal ones count in the order of their ids.
    """
    # Below the best one, which stays 0 at any temperature: at a tiny one all would be -inf.
    scores = log_probs.to(torch.float64, copy=True).sub_(log_probs.amax(-1, keepdim=True))
    scores = scores.div_(config.temperature).log_softmax(-1)
    if not (config.top_k or config.min_p or config.top_p < 1):
        return scores
    order = scores.sort(dim=-1, descending=True, stable=True)
    values = order.values
    place = torch.arange(values.shape[-1], device=values.device)
    dropped = values == float("-inf")
    if config.top_k:
        dropped |= place >= min(config.top_k, len(place))
    if config.min_p:
        dropped |= values.exp() < config.min_p * values[:, :1].exp()
    if config.top_p < 1:
        values = values.masked_fill(dropped, float("-inf")).log_softmax(-1)
        before = values.exp().cumsum(-1) - values.exp()
        dropped |= (before >= config.top_p) & (place > 0)
    return scores.scatter(1, order.indices, order.values.masked_fill(dropped, float("-inf")))


def draw(log_probs: Tensor, chance: Tensor, config: GenerationConfig) -> Tensor:
    """Return one token of each row, (rows), by the inverse of the cumulative distribution."""
    weights = keep_likely(log_probs, config).softmax(-1)
    cumulative = weights.cumsum(-1)
    wanted = (chance[:, None] * cumulative[:, -1:]).clamp_min(0)
    tokens = torch.searchsorted(cumulative, wanted, right=True).squeeze(1)
    # Rounding must not lead behind the last token that is possible.
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).long().argmax(1)
    return torch.minimum(tokens, last)
