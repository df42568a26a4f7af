"""The learning rate as a function of the step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import TrainingConfig
from tfray.training.schedule import learning_rate

SCHEDULES = ["inverse_sqrt", "cosine", "linear", "wsd"]


def rates(steps: int, **changed: Any) -> list[float]:
    config = TrainingConfig(**changed)
    return [learning_rate(step, steps, config) for step in range(steps)]


@given(schedule=st.sampled_from(SCHEDULES), warmup=st.integers(1, 200), peak=st.floats(1e-5, 1.0))
def test_warm_up_rises_in_equal_parts_to_the_peak(schedule: str, warmup: int, peak: float):
    found = rates(warmup, schedule=schedule, warmup_steps=warmup, learning_rate=peak)
    assert found == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])


@given(schedule=st.sampled_from(SCHEDULES), warmup=st.integers(1, 200), after=st.integers(20, 400))
def test_the_schedule_joins_the_warm_up_without_a_jump_and_only_falls(schedule: str, warmup: int, after: int):
    found = rates(warmup + after, schedule=schedule, warmup_steps=warmup, learning_rate=1.0)
    assert max(found) == pytest.approx(1.0)
    assert found[warmup] == pytest.approx(1.0, abs=1 / warmup)
    decay = found[warmup - 1 :]
    assert all(earlier >= later > 0 for earlier, later in pairwise(decay))


@given(warmup=st.integers(0, 200), after=st.integers(200, 400))
def test_cosine_ends_near_zero_and_is_half_way_in_the_middle(warmup: int, after: int):
    found = rates(warmup + after, schedule="cosine", warmup_steps=warmup, learning_rate=1.0)
    assert found[-1] < 1e-4
    assert found[warmup + after // 2] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_what_ends_at_zero_stays_there_beyond_the_estimated_end(schedule: Any):
    config = TrainingConfig(schedule=schedule, warmup_steps=10)
    assert learning_rate(100, 100, config) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(150, 100, config) == pytest.approx(0.0, abs=1e-12)


def test_linear_falls_by_the_same_each_step():
    found = rates(110, schedule="linear", warmup_steps=10, learning_rate=1.0)
    assert found[10:] == pytest.approx([1 - step / 100 for step in range(100)])


@given(warmup=st.integers(0, 50), share=st.floats(0.05, 0.7))
def test_wsd_stays_at_the_peak_and_decays_in_its_share_of_the_steps(warmup: int, share: float):
    found = rates(200, schedule="wsd", warmup_steps=warmup, learning_rate=1.0, decay_share=share)
    begin = 200 - share * 200
    assert all(rate == pytest.approx(1.0) for step, rate in enumerate(found) if warmup <= step <= begin)
    falling = [rate for step, rate in enumerate(found) if step > begin]
    assert falling == pytest.approx([left / (share * 200) for left in range(len(falling), 0, -1)])


def test_wsd_decays_in_what_the_warm_up_leaves_where_that_is_less_than_its_share():
    found = rates(100, schedule="wsd", warmup_steps=60, learning_rate=1.0, decay_share=0.9)
    assert found[60:] == pytest.approx([1 - step / 40 for step in range(40)])


def test_inverse_sqrt_halves_in_four_times_the_steps():
    found = rates(400, schedule="inverse_sqrt", warmup_steps=25, learning_rate=1.0)
    assert found[99] == pytest.approx(found[399] * 2) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak(schedule: str):
    assert rates(100, schedule=schedule, warmup_steps=0, learning_rate=0.3)[0] == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_may_end_within_the_warm_up(schedule: str):
    assert rates(5, schedule=schedule, warmup_steps=10, learning_rate=1.0) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
