"""A checkpoint under other settings: what it knows is used only for what it says something about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import Nodes
from tests.training.runs import Run
from tests.training.token_folders import make_token_folder
from tfray.batches.count import EpochCount
from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig
from tfray.training.ends import count_steps
from tfray.training.resume import adapt, choose_precision, judged_by

ORDER = {"pools": "p", "steps": "s"}
PROGRESS = Progress(
    step=90, epoch=2, pool=3, step_in_pool=17, best_score=31.0, best_step=80, stale_validations=4, order=ORDER,
    best_metric="bleu",
)  # fmt: skip


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and one more node."""
    nodes = Nodes(2)
    yield nodes
    nodes.stop()


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


@pytest.mark.parametrize("pools_are_the_same", [True, False])
def test_steps_of_another_data_order_are_counted_from_where_it_began(pools_are_the_same: bool):
    config, before, after = TrainingConfig(epochs=10), EpochCount(40, 1000, 4), EpochCount(20, 1000, 4)
    progress = replace(PROGRESS, step=110, tokens=2750)  # three of four pools of epoch 2
    assert count_steps(config, before, progress.order_since) == 400
    order = ORDER | ({"steps": "other"} if pools_are_the_same else {"pools": "other"})
    found = adapt(progress, order, "bleu")
    left = 7.25 * 20 if pools_are_the_same else 8 * 20
    assert count_steps(config, after, found.order_since) == 110 + left
    later = adapt(replace(found, step=150, epoch=5, tokens=5000), order, "bleu")
    assert count_steps(config, after, later.order_since) == 110 + left, "a later start counts the same"
    by_tokens = replace(config, token_budget=5750)
    assert count_steps(by_tokens, after, found.order_since) == 110 + 3 * 20
    assert count_steps(replace(by_tokens, max_steps=120), after, found.order_since) == 120


def test_another_metric_has_no_best_yet(caplog: pytest.LogCaptureFixture):
    found = adapt(PROGRESS, ORDER, "loss")
    assert (found.best_score, found.best_step, found.stale_validations, found.best_metric) == (None, 0, 0, "loss")
    assert found.cursor == PROGRESS.cursor
    assert "best bleu so far, of step 80, says nothing about loss" in caplog.text


def test_by_other_validation_data_there_is_no_best_yet(caplog: pytest.LogCaptureFixture):
    before = replace(PROGRESS, judged_by="a")
    assert adapt(before, ORDER, "bleu", "a") == before
    assert adapt(PROGRESS, ORDER, "bleu", "a") == before, "a checkpoint that does not say counts as the same"
    assert not caplog.messages
    found = adapt(before, ORDER, "bleu", "b")
    assert (found.best_score, found.best_step, found.stale_validations) == (None, 0, 0)
    assert (found.judged_by, found.pending) == ("b", "validation")
    assert "best bleu so far, of step 80, is of other validation data" in caplog.text


def test_validation_data_are_other_ones_where_they_are_decoded_otherwise(write_tokens, tmp_path: Path):
    folders = [write_tokens(str(tmp_path / str(id)), [("a", [([5], [id])])], split="valid") for id in (6, 7)]
    by_loss, by_bleu = TrainingConfig(), TrainingConfig(best_metric="bleu")
    assert judged_by(folders[0], by_loss) != judged_by(folders[1], by_loss)
    assert judged_by(folders[0], by_bleu) != judged_by(folders[0], replace(by_bleu, valid_beam_size=4))
    assert judged_by(folders[0], by_loss) == judged_by(folders[0], replace(by_loss, valid_beam_size=4))


def test_by_another_metric_the_weights_of_the_checkpoint_are_validated_first(caplog: pytest.LogCaptureFixture):
    waiting = replace(PROGRESS, pending="scores")
    for progress in (PROGRESS, waiting):
        assert adapt(progress, ORDER, "loss").pending == "validation"
    assert "by the validations from here on, first that of the checkpoint" in caplog.text
    assert adapt(waiting, ORDER, "bleu").pending == "scores"


def test_precision_is_that_in_which_the_run_began_whatever_the_machines_are(caplog: pytest.LogCaptureFixture):
    assert choose_precision(Progress(), TrainingConfig(), "bf16") == "bf16"
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(), "fp32") == "fp32"
    assert not caplog.messages
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(), "bf16") == "fp32"
    assert "--training.precision bf16 --allow_change training.precision" in caplog.text
    assert choose_precision(Progress(precision="fp32"), TrainingConfig(precision="bf16"), "fp32") == "bf16"


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_run_goes_on_in_another_data_order_where_that_is_insisted_on(nodes: Nodes, tmp_path: Path):
    make_token_folder(tmp_path / "tokens")
    run = Run(tmp_path / "tokens", tmp_path / "run", nodes.address)
    steps = ("--training.max_steps", "30", "--training.checkpoint_every", "5")  # an epoch has 4
    run.start("1", *steps, pause=0.4)
    run.wait_for(11)
    run.process.kill()
    run.process.wait()
    other = ("--batches.max_tokens", "120", "--batches.pool_examples", "70")
    run.start("2", *steps, *other)
    assert run.process.wait(100) == 2
    names = ("batches.max_tokens", "batches.pool_examples")
    assert " ".join(f"--allow_change {name}" for name in names) in run.log.read_text()
    run.start("2", *steps, *other, *(word for name in names for word in ("--allow_change", name)))
    assert run.end()["steps"] == 30
    assert re.search(r"the data order has changed, and epoch \d begins anew", run.log.read_text())
