"""The picture of a training log: points that were taken back do not count, and any log can be drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.report.curves import Curve, draw_curves, drop_undone, read_curve

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def start(step: int) -> dict:
    return {"event": "start", "step": step}


def train(step: int, loss: float, **more: float) -> dict:
    event = {"event": "train", "step": step, "loss": loss, "learning_rate": 1e-4, "gradient_norm": 0.5}
    return event | {"target_tokens_per_second": 8800.0} | more


def valid(step: int, loss: float, **more: float) -> dict:
    return {"event": "valid", "step": step, "loss": loss} | more


NAN = float("nan")
LOGS = {
    "both": [start(0), train(50, 6.1), train(100, 5.0), valid(100, 4.8)],
    "scores": [train(100, 5.0, gradient_norm_max=3.0, mfu=0.3, data_wait=0.0), valid(100, 4.8, bleu=3.0, chrf=20.0)],
    "labels": [train(100, 0.4), valid(100, 0.3, accuracy=0.91), valid(200, 0.2, accuracy=0.93)],
    "one line": [train(50, 6.1)],
    "no training": [valid(100, 4.8)],
    "not finite": [valid(100, NAN, bleu=NAN), train(100, float("inf"), gradient_norm=NAN, gradient_norm_max=NAN)],
    "a norm of zero": [train(100, 1.0, gradient_norm=0.0)],
}


@pytest.mark.parametrize("name", LOGS)
def test_any_log_with_a_point_gives_a_picture(name: str) -> None:
    picture = draw_curves(LOGS[name])
    assert picture is not None and picture.startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("events", [[], [start(0)], [train(50, 6.0), start(0)]])
def test_a_log_without_a_point_gives_none(events: list[dict]) -> None:
    assert draw_curves(events) is None


def test_a_run_that_goes_on_from_an_older_step_takes_back_what_came_after_it() -> None:
    first_run = [start(0), train(50, 6.0), train(100, 5.0), valid(100, 4.9), train(150, 4.0), valid(150, 4.2)]
    events = drop_undone([*first_run, start(100), train(140, 4.5)])
    assert read_curve(events, "train", "loss") == Curve([50, 100, 140], [6.0, 5.0, 4.5])
    assert read_curve(events, "valid", "loss") == Curve([100], [4.9])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=30))
def test_a_curve_is_that_of_the_steps_as_they_were_done_last(moves: list[tuple[bool, int]]) -> None:
    events, curve, step = [start(0)], {}, 0
    for number, (is_crash, amount) in enumerate(moves):
        step = max(0, step - amount) if is_crash else step + amount
        if is_crash:
            events.append(start(step))
            curve = {at: value for at, value in curve.items() if at <= step}
        else:
            events.append(train(step, float(number)))
            curve[step] = float(number)
    assert read_curve(drop_undone(events), "train", "loss") == Curve(sorted(curve), [curve[at] for at in sorted(curve)])


def test_scores_that_come_later_than_the_loss_of_their_step_are_of_that_step() -> None:
    events = [valid(100, 4.8), train(150, 4.0), {"event": "valid", "step": 100, "bleu": 12.5}]
    assert read_curve(events, "valid", "loss") == Curve([100], [4.8])
    assert read_curve(events, "valid", "bleu") == Curve([100], [12.5])


def test_the_best_validation_is_the_lowest_finite_loss_or_the_highest_score() -> None:
    curve = Curve([1, 2, 3, 4], [NAN, 2.0, 1.5, 1.7])
    assert curve.best() == (3, 1.5)
    assert curve.best(is_highest=True) == (2, 2.0)
    assert Curve([1], [NAN]).best() is None
