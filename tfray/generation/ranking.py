"""Scores: that of what cannot be, and what a finished hypothesis' is divided by before it is compared with others."""

from __future__ import annotations

from torch import Tensor

from tfray.config import GenerationConfig

NEVER = float("-inf")
"""The score of what cannot be."""


def length_penalty(lengths: Tensor, config: GenerationConfig) -> Tensor:
    """Return what scores are divided by: length^a, or ((5 + length) / 6)^a (Wu et al. 2016, equation 14)."""
    lengths = lengths.double()
    base = (5 + lengths) / 6 if config.length_normalization == "gnmt" else lengths
    return base**config.length_penalty
