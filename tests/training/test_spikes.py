"""Which steps are skipped as spikes, and that the verdicts survive a restart."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.training.spikes import HISTORY, IN_A_ROW, LEAST_DISTANCE, NEEDED, SpikeGuard

Step = tuple[float, float]
"""Gradient norm and loss."""


def usual_steps(count: int, seed: int = 0) -> list[Step]:
    """Return steps with norms of median 1 and losses of median 4, at a median distance of about 0.1 from it."""
    choose = random.Random(seed)
    return [(choose.uniform(0.5, 1.5), choose.uniform(3.8, 4.2)) for _ in range(count)]


def trained_guard(count: int = HISTORY, factor: float = 10.0) -> SpikeGuard:
    guard = SpikeGuard(factor)
    assert not any(guard.judge(*step) for step in usual_steps(count))
    return guard


@pytest.mark.parametrize("step", [(12.0, 4.0), (1.0, 5.5), (1e9, 1e9)])
def test_a_step_of_a_far_larger_norm_or_loss_is_a_spike(step: Step):
    assert trained_guard().judge(*step)


@pytest.mark.parametrize("step", [(8.0, 4.0), (1.0, 4.8), (0.0, 4.0), (1.0, 0.1)])
def test_a_step_that_is_a_little_larger_or_far_smaller_is_none(step: Step):
    assert not trained_guard().judge(*step)


def test_the_bounds_are_the_factor_times_the_medians():
    guard = SpikeGuard(4.0)
    for loss in [1.0, 2.0, 3.0] * NEEDED:  # median 2, median distance 1
        guard.judge(0.5, loss)
    assert not guard.is_spike(2.0, 6.0)
    assert guard.is_spike(2.001, 6.0) and guard.is_spike(2.0, 6.001)


def test_losses_that_hardly_differ_may_still_move_by_the_least_distance():
    guard = SpikeGuard(10.0)
    for _ in range(HISTORY):
        guard.judge(1.0, 0.001)
    assert not guard.is_spike(1.0, 0.001 + 9.9 * LEAST_DISTANCE)
    assert guard.is_spike(1.0, 0.001 + 10.1 * LEAST_DISTANCE)


def test_norms_far_below_what_gradients_are_clipped_to_may_still_reach_a_multiple_of_that():
    guard = SpikeGuard(10.0, least_norm=1.0)
    for _ in range(HISTORY):
        guard.judge(0.01, 0.5)
    assert not guard.is_spike(9.9, 0.5)
    assert guard.is_spike(10.1, 0.5)


def test_without_enough_history_nothing_is_judged():
    assert not trained_guard(NEEDED - 1).judge(1e6, 1e6)
    assert trained_guard(NEEDED).judge(1e6, 1e6)


def test_factor_zero_skips_nothing_and_remembers_nothing():
    guard = trained_guard(factor=0.0)
    assert not guard.judge(1e6, 1e6)
    assert guard.state_dict() == SpikeGuard(0.0).state_dict()


def test_skipped_steps_leave_the_history_as_it_was():
    guard = trained_guard()
    before = guard.state_dict()
    assert guard.judge(1e6, 4.0)
    assert {**guard.state_dict(), "in_a_row": 0} == before


def test_the_history_is_that_of_the_newest_steps():
    guard = SpikeGuard(10.0)
    for norm in [1.0] * HISTORY + [9.0] * HISTORY:
        assert not guard.judge(norm, 4.0)
    assert not guard.judge(80.0, 4.0)
    assert len(guard.norms) == len(guard.losses) == HISTORY


def test_too_many_spikes_in_a_row_are_a_new_level_from_which_it_judges_again():
    guard = trained_guard()
    assert [guard.judge(50.0, 9.0) for _ in range(IN_A_ROW + 1)] == [True] * IN_A_ROW + [False]
    assert guard.resets == 1
    assert not any(guard.judge(50.0, 9.0) for _ in range(NEEDED - 1))
    assert guard.judge(501.0, 9.0) and not guard.judge(499.0, 9.0)


def test_a_usual_step_between_spikes_starts_their_count_anew():
    guard = trained_guard()
    for _ in range(3):
        assert all(guard.judge(50.0, 9.0) for _ in range(IN_A_ROW))
        assert not guard.judge(1.0, 4.0)
    assert guard.resets == 0


@pytest.mark.parametrize("step", [(float("nan"), 4.0), (1.0, float("nan")), (float("inf"), 4.0), (1.0, float("inf"))])
@pytest.mark.parametrize("factor", [0.0, 10.0])
def test_a_step_that_is_not_finite_is_not_taken_and_not_remembered_either(step: Step, factor: float):
    guard = trained_guard(10, factor)
    before = guard.state_dict()
    assert guard.judge(*step)
    assert guard.state_dict() == before


STEPS = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 30.0]), st.sampled_from([3.9, 4.0, 4.2, 9.0])), min_size=1, max_size=150
)


@given(STEPS, st.integers(0, 150))
def test_a_guard_restored_from_json_gives_the_same_verdicts(steps: list[Step], cut: int):
    whole, first, second = (SpikeGuard(10.0) for _ in range(3))
    expected = [whole.judge(*step) for step in steps]
    found = [first.judge(*step) for step in steps[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + [second.judge(*step) for step in steps[cut:]] == expected
    assert second.state_dict() == whole.state_dict()


@given(STEPS)
def test_no_more_steps_than_stated_are_skipped_in_a_row(steps: list[Step]):
    guard = trained_guard()
    verdicts = "".join("s" if guard.judge(*step) else "." for step in steps * 2)
    assert "s" * (IN_A_ROW + 1) not in verdicts
