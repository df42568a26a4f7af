"""What training does with its time and memory, between log lines."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from tfray.training.flops import Peak
from tfray.training.step import StepMetrics

Item = TypeVar("Item")


class Meter:
    """Sums step metrics between log lines; time for validation does not count.

    `find_peak` says what MFU relates to, where there is to be one; asked again when training is faster than that: a
    peak that was measured on a busy machine is too low.
    """

    def __init__(self, seconds: float, find_peak: Callable[[], Peak] | None = None) -> None:
        self.earlier, self.find_peak = seconds, find_peak
        self.peak = find_peak() if find_peak else None
        self.started = time.monotonic()
        self.idle = 0.0
        self.saved = 0.0
        self.reset()

    def reset(self) -> None:
        self.since = self.seconds
        self.waited = self.flops = 0.0
        self.metrics: list[StepMetrics] = []

    @property
    def seconds(self) -> float:
        """Seconds spent training over all starts."""
        return self.earlier + time.monotonic() - self.started - self.idle

    @property
    def mean_loss(self) -> float:
        """Loss per target token since the last log line, over steps that counted."""
        counted = [step for step in self.metrics if not step.is_skipped]
        tokens = sum(step.target_tokens for step in counted)
        return sum(step.negative_log_likelihood for step in counted) / tokens if tokens else math.nan

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.idle += time.monotonic() - begun

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, and count the time until each is there as waiting for data."""
        iterator = iter(items)
        while True:
            begun = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - begun
            yield item

    def add(self, metrics: StepMetrics, flops: float = 0.0) -> None:
        """Take in a step; `flops` are those of this worker's micro-batches."""
        self.metrics.append(metrics)
        self.flops += flops

    def utilization(self, rate: float) -> dict[str, float | str]:
        """Return the share of the peak that a rate is, and the peak itself where it is another than before."""
        if self.peak is None or self.find_peak is None:
            return {}
        found: dict[str, float | str] = {}
        if rate > self.peak.flops_per_second:
            with self.paused():
                again = self.find_peak()
            if again.flops_per_second > self.peak.flops_per_second:
                self.peak = again
                found["peak"] = again.source
        return {"mfu": round(rate / self.peak.flops_per_second, 4), **found}

    def take(self, saved_seconds: float = 0.0) -> dict[str, Any]:
        """Return means, rates and shares since the last call; `saved_seconds` is all the time that training has
        stood still for checkpoints since its start."""
        elapsed = max(self.seconds - self.since, 1e-9)
        source = sum(step.source_tokens for step in self.metrics)
        target = sum(step.target_tokens for step in self.metrics)
        padded = sum(step.padded_tokens for step in self.metrics)
        norms = [step.gradient_norm for step in self.metrics if math.isfinite(step.gradient_norm)]
        rates: dict[str, Any] = {
            "loss": round(self.mean_loss, 5),
            "gradient_norm": round(sum(norms) / len(norms), 4) if norms else math.nan,
            "gradient_norm_max": round(max(norms), 4) if norms else math.nan,
            "source_tokens_per_second": round(source / elapsed, 1),
            "target_tokens_per_second": round(target / elapsed, 1),
            "target_tokens_per_step": round(target / len(self.metrics), 1),
            "padding": round(1 - (source + target) / padded, 4),
            "skipped": sum(step.is_skipped for step in self.metrics),
            "data_wait": round(self.waited / elapsed, 4),
            "checkpoint_wait": round((saved_seconds - self.saved) / elapsed, 4),
            "peak_memory_gb": round(peak_memory() / 1e9, 3),
            "seconds_per_step": elapsed / len(self.metrics),
        }
        if self.flops:
            rates |= self.utilization(self.flops / elapsed)
        self.saved = saved_seconds
        self.reset()
        return rates


def peak_memory() -> int:
    """Return the most bytes that this process has had: on its GPU, or else in main memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # Not getrusage's, which on Linux begins with that of the process that started this one.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
