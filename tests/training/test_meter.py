"""Means, rates and shares between log lines."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import pytest

from tfray.training import meter as meter_file
from tfray.training.flops import Peak
from tfray.training.meter import Meter, peak_memory
from tfray.training.step import StepMetrics


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_file, "time", clock)
    return clock


def step(likelihood: float, target: int = 10, norm: float = 1.0, is_skipped: bool = False) -> StepMetrics:
    return StepMetrics(likelihood, target, 20, 40, norm, is_skipped)


def test_losses_are_means_over_tokens_and_rates_are_over_the_time_that_passed(clock: Clock):
    meter = Meter(seconds=1000.0, find_peak=lambda: Peak(50.0, "measured"))
    meter.add(step(30.0, norm=1.0), flops=60.0)
    meter.add(step(10.0, target=30, norm=3.0), flops=40.0)
    clock.now += 4
    found = meter.take(saved_seconds=1.0)
    assert found["loss"] == 1.0
    assert (found["gradient_norm"], found["gradient_norm_max"]) == (2.0, 3.0)
    assert (found["source_tokens_per_second"], found["target_tokens_per_second"]) == (10.0, 10.0)
    assert found["target_tokens_per_step"] == 20.0
    assert found["padding"] == 0.0 and found["seconds_per_step"] == 2.0
    assert found["mfu"] == 0.5 and found["checkpoint_wait"] == 0.25
    assert meter.seconds == 1004.0


def test_a_peak_that_training_outruns_was_measured_on_a_busy_machine_and_is_measured_again(clock: Clock):
    peaks = iter([Peak(20.0, "while busy"), Peak(50.0, "now")])

    def measure() -> Peak:
        clock.now += 1  # is no time of training
        return next(peaks)

    meter = Meter(0.0, measure)
    rates = []
    for work in (60.0, 100.0, 120.0):
        meter.add(step(1.0), flops=work)
        clock.now += 4
        rates.append(meter.take())
    assert [found["mfu"] for found in rates] == [0.75, 0.5, 0.6]
    assert [found.get("peak") for found in rates] == [None, "now", None]
    assert [found["target_tokens_per_second"] for found in rates] == [2.5, 2.5, 2.5]


def test_each_line_is_of_the_steps_since_the_last(clock: Clock):
    meter = Meter(0.0)
    meter.add(step(30.0))
    clock.now += 1
    meter.take(saved_seconds=0.5)
    meter.add(step(10.0))
    clock.now += 2
    found = meter.take(saved_seconds=0.75)
    assert found["loss"] == 1.0 and found["target_tokens_per_second"] == 5.0
    assert found["checkpoint_wait"] == 0.125
    assert "mfu" not in found


def test_validation_takes_no_training_time_and_no_share_of_it(clock: Clock):
    meter = Meter(0.0)
    with meter.paused():
        clock.now += 50
    with contextlib.suppress(KeyError), meter.paused():
        clock.now += 50
        raise KeyError("left")
    meter.add(step(1.0))
    clock.now += 2
    assert meter.take()["seconds_per_step"] == 2.0


def test_waiting_for_data_is_what_passes_before_an_item_is_there(clock: Clock):
    def slow() -> Iterator[int]:
        for item in range(3):
            clock.now += 1
            yield item

    meter = Meter(0.0)
    for _ in meter.waiting(slow()):
        clock.now += 3
        meter.add(step(1.0))
    assert meter.take()["data_wait"] == 0.25


def test_skipped_steps_are_counted_and_are_not_part_of_the_loss(clock: Clock):
    meter = Meter(0.0)
    for metrics in (step(20.0), step(math.nan, norm=math.inf, is_skipped=True)):
        meter.add(metrics)
    clock.now += 1
    found = meter.take()
    assert (found["loss"], found["skipped"], found["gradient_norm_max"]) == (2.0, 1, 1.0)


def test_a_line_of_skipped_steps_alone_has_no_loss(clock: Clock):
    meter = Meter(0.0)
    meter.add(step(math.nan, norm=math.nan, is_skipped=True))
    found = meter.take()
    assert math.isnan(found["loss"]) and math.isnan(found["gradient_norm"])


def test_peak_memory_is_that_of_this_process_in_bytes():
    block = bytearray(300 << 20)
    block[::4096] = b"1" * len(block[::4096])
    assert 300 << 20 < peak_memory() < 1 << 42
