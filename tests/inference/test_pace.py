"""The time left is known within 15 % after a tenth of the work, however slowly the models start."""

from __future__ import annotations

import heapq
import random

import pytest

from tfray.inference import pace as pace_module
from tfray.inference.pace import Pace


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def work(models: int, units: int, seed: int, lost: bool = False) -> list[dict]:
    """Return the records of a simulated job, with the time at which each came, in that order.

    Models take long to load, not all as long, and to warm up; units take about a minute, and models wait between them.
    """
    chance = random.Random(seed)
    free = [(chance.uniform(5, 40), f"{model}") for model in range(models)]
    heapq.heapify(free)
    records: list[dict] = []
    warm: set[str] = set()
    for number in range(units):
        began, worker = heapq.heappop(free)
        if lost and number == units // 20:
            heapq.heappush(free, (began + 60, f"{worker} again"))  # a unit is lost, and its model loaded anew
            began, worker = heapq.heappop(free)
        seconds = chance.uniform(50, 70) * (1 if worker in warm else 1.5)
        warm.add(worker)
        skew = 1000.0 * int(worker.split()[0])  # the clocks of its machines differ
        came = began + seconds + chance.uniform(0.2, 2)
        records.append({"began": began + skew, "seconds": seconds, "worker": worker, "unit_rows": 500, "came": came})
        heapq.heappush(free, (began + seconds + chance.uniform(0, 2), worker))
    return sorted(records, key=lambda record: record["came"])


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("models", "units"), [(1, 64), (2, 64), (4, 100), (8, 400), (16, 640)])
def test_the_time_left_is_known_within_15_percent_after_a_tenth(
    models: int, units: int, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    for seed in range(20):
        pace, records = Pace(models), work(models, units, seed, lost)
        end, done = records[-1]["came"], 0
        for record in records:
            clock.now = record["came"]
            pace.take(record)
            done += 1
            if units / 10 <= done <= 0.8 * units:  # towards the end, minutes are few and units are whole
                assert pace.rate is not None
                predicted, real = (units - done) * 500 / pace.rate, end - clock.now
                assert predicted == pytest.approx(real, rel=0.15), f"seed {seed}, after {done} of {units}"


@pytest.mark.parametrize(
    ("expected", "come", "units"), [(1, 3, 30), (4, 2, 60)], ids=["some are added", "some never come"]
)
def test_models_count_as_they_are_at_work(
    expected: int, come: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pace = Clock(), Pace(expected)
    monkeypatch.setattr(pace_module, "time", clock)
    for record in work(come, units, 1):
        clock.now = record["came"]
        pace.take(record)
    assert pace.rate == pytest.approx(come * 500 / 60, rel=0.1)


def test_nothing_is_said_before_a_unit_is_done_and_a_model_that_is_gone_counts_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pace = Clock(), Pace(1)
    monkeypatch.setattr(pace_module, "time", clock)
    assert pace.rate is None
    for worker in ("a", "b"):
        pace.take({"began": 0.0, "seconds": 10.0, "worker": worker, "unit_rows": 100})
    assert pace.rate == pytest.approx(20)
    clock.now = 50
    pace.take({"began": 10.0, "seconds": 10.0, "worker": "a", "unit_rows": 100})
    assert pace.rate == pytest.approx(10)
