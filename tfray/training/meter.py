"""Rates between log lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tfray.training.step import StepMetrics


class Meter:
    """Sums step metrics between log lines; time for validation and checkpoints does not count."""

    def __init__(self, seconds: float) -> None:
        self.earlier = seconds
        self.started = time.monotonic()
        self.idle = 0.0
        self.reset()

    def reset(self) -> None:
        self.since = self.seconds
        self.metrics: list[StepMetrics] = []

    @property
    def seconds(self) -> float:
        """Seconds spent training over all starts."""
        return self.earlier + time.monotonic() - self.started - self.idle

    @property
    def mean_loss(self) -> float:
        """Loss per target token since the last log line."""
        tokens = sum(step.target_tokens for step in self.metrics)
        return sum(step.negative_log_likelihood for step in self.metrics) / max(1, tokens)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out."""
        begun = time.monotonic()
        yield
        self.idle += time.monotonic() - begun

    def add(self, metrics: StepMetrics) -> None:
        self.metrics.append(metrics)

    def take(self) -> dict[str, float]:
        """Return means and rates since the last call."""
        elapsed = max(self.seconds - self.since, 1e-9)
        source = sum(step.source_tokens for step in self.metrics)
        target = sum(step.target_tokens for step in self.metrics)
        padded = sum(step.padded_tokens for step in self.metrics)
        rates = {
            "loss": round(self.mean_loss, 5),
            "gradient_norm": round(self.metrics[-1].gradient_norm, 4),
            "source_tokens_per_second": round(source / elapsed, 1),
            "target_tokens_per_second": round(target / elapsed, 1),
            "padding": round(1 - (source + target) / padded, 4),
            "seconds_per_step": elapsed / len(self.metrics),
        }
        self.reset()
        return rates
