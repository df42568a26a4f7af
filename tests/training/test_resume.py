"""A checkpoint under other settings: what it knows is used only for what it says something about."""

from __future__ import annotations

import pytest

from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig
from tfray.training.resume import adapt, choose_precision

ORDER = {"pools": "p", "steps": "s"}
PROGRESS = Progress(
    step=90, epoch=2, pool=3, step_in_pool=17, best_score=31.0, best_step=80, stale_validations=4, order=ORDER,
    best_metric="bleu",
)  # fmt: skip


def test_the_same_settings_change_nothing_and_say_nothing(caplog: pytest.LogCaptureFixture):
    assert adapt(PROGRESS, ORDER, "bleu") == PROGRESS
    assert adapt(Progress(), ORDER, "loss") == Progress(order=ORDER, best_metric="loss")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("order", "place", "said"),
    [
        ({"pools": "p", "steps": "other"}, (2, 3, 0), "pool 3 of epoch 2 begins anew; the 17 steps of it"),
        ({"pools": "other", "steps": "s"}, (2, 0, 0), "epoch 2 begins anew; the 3 pools and 17 steps of it"),
    ],
)
def test_another_data_order_begins_anew_what_was_begun_and_says_how_much_is_done_again(
    order: dict[str, str], place: tuple[int, int, int], said: str, caplog: pytest.LogCaptureFixture
):
    found = adapt(PROGRESS, order, "bleu")
    assert found.cursor == place and found.step == 90 and found.order == order
    assert said in caplog.text
    assert adapt(found, order, "bleu") == found


def test_another_metric_has_no_best_yet(caplog: pytest.LogCaptureFixture):
    found = adapt(PROGRESS, ORDER, "loss")
    assert (found.best_score, found.best_step, found.stale_validations, found.best_metric) == (None, 0, 0, "loss")
    assert found.cursor == PROGRESS.cursor
    assert "best bleu so far, of step 80, says nothing about loss" in caplog.text


def test_precision_is_that_in_which_the_run_began_whatever_the_machines_are(caplog: pytest.LogCaptureFixture):
    assert choose_precision(Progress(), TrainingConfig(), "bf16") == "bf16"
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(), "fp32") == "fp32"
    assert not caplog.messages
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(), "bf16") == "fp32"
    assert "--training.precision bf16 --allow_change training.precision" in caplog.text
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(precision="bf16"), "fp32") == "bf16"
