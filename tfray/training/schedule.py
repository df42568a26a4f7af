"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from tfray.config import TrainingConfig


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step, counted from 0, of total_steps; it never falls below 0."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * share_of_peak(step, total_steps, config)


def share_of_peak(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Return what the schedule leaves of the peak after the warm-up, 0 to 1."""
    warmup = config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / (step + 1))
    # The number of steps is an estimate, so a step may lie beyond it.
    after_warmup = max(1, total_steps - warmup)
    left = max(0.0, 1 - (step - warmup) / after_warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if config.schedule == "linear":
        return left
    decay_steps = max(1.0, min(config.decay_share * total_steps, after_warmup))
    return min(1.0, max(0, total_steps - step) / decay_steps)
