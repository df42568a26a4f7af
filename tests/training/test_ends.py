"""When and how training ends: by its settings, by a number that is none, or in the middle of a validation."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster import Nodes
from tests.training.runs import Run
from tests.training.token_folders import make_token_folder
from tfray.batches.plan import most_pairs, plan_pool
from tfray.checkpoint.state import Progress
from tfray.config import BatchesConfig, TrainingConfig
from tfray.training.ends import is_done, is_stale, most_epochs
from tfray.training.failure import FAILURE, REPORT

CONFIG = TrainingConfig(epochs=3, max_steps=100, token_budget=5000, patience=2)


@given(st.integers(0, 4), st.integers(0, 120), st.integers(0, 6000))
def test_training_is_done_by_the_first_of_epochs_steps_and_tokens(epoch: int, step: int, tokens: int):
    progress = Progress(step=step, epoch=epoch, tokens=tokens)
    assert is_done(progress, CONFIG) == (epoch >= 3 or step >= 100 or tokens >= 5000)
    assert is_done(progress, replace(CONFIG, max_steps=None, token_budget=None)) == (epoch >= 3)


def test_training_is_stale_after_so_many_validations_without_a_better_one():
    assert [is_stale(Progress(stale_validations=count), CONFIG) for count in range(4)] == [False, False, True, True]
    assert not is_stale(Progress(stale_validations=99), replace(CONFIG, patience=0))


@pytest.mark.parametrize(
    ("max_steps", "token_budget", "planned"),
    [
        (None, None, 1000),
        (5000, None, 1000),
        (100, None, 15),
        (91, None, 6),
        (None, 8000, 45),
        (None, 2001, 6),
        (100, 2001, 6),
        (None, 10**9, 1000),
    ],
)
def test_no_more_epochs_are_planned_than_the_steps_and_tokens_that_are_left_can_need(
    max_steps: int | None, token_budget: int | None, planned: int
):
    config = TrainingConfig(epochs=1000, max_steps=max_steps, token_budget=token_budget)
    assert most_epochs(Progress(step=90, epoch=4, tokens=2000), config, pairs=150) == planned


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 3), st.booleans(), st.data())
def test_no_step_of_any_plan_holds_more_pairs_than_one_can(
    pairs: int, max_tokens: int, lanes: int, packing: bool, data: st.DataObject
):
    config = BatchesConfig(max_tokens=max_tokens, lanes=lanes, packing=packing)
    sides = [data.draw(st.lists(st.integers(1, 24), min_size=pairs, max_size=pairs)) for _ in range(2)]
    steps = plan_pool(*map(np.array, sides), config, epoch=0, pool=0)
    assert max(sum(map(len, step)) for step in steps) <= most_pairs(config, max_length=24)


def test_few_epochs_of_a_large_corpus_are_planned_for_steps_that_they_fill():
    config = TrainingConfig(epochs=10**6, max_steps=100_000)
    most = most_pairs(BatchesConfig(lanes=2, max_tokens=4096), max_length=256)
    assert most_epochs(Progress(), config, 3_000_000, most) == 1 + math.ceil(100_000 / 367)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and one more node."""
    nodes = Nodes(2)
    yield nodes
    nodes.stop()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_validation_in_which_a_worker_must_go_is_left_saved_and_made_up_for(nodes: Nodes, tmp_path: Path) -> None:
    make_token_folder(tmp_path / "tokens", valid_pairs=6000)
    run = Run(tmp_path / "tokens", tmp_path / "run", nodes.address)
    often = ("--training.max_steps", "40", "--training.validate_every", "20", "--training.checkpoint_every", "1000")
    best = ("--training.keep_checkpoints", "1", "--training.keep_best_checkpoints", "2")
    run.start("1", *often, *best, "--training.valid_rows", "6000", "--training.valid_on", "worker")
    run.wait_for(20)
    time.sleep(0.5)
    (worker,) = nodes.workers("RayTrainWorker")
    worker.send_signal(signal.SIGTERM)
    run.end()
    events = [event for event in run.events() if event["event"] in ("start", "stop", "valid")]
    found = [(event["event"], event["step"]) for event in events]
    assert found == [("start", 0), ("stop", 20), ("start", 20), ("valid", 20), ("valid", 40)]
    states = [json.loads(path.read_text()) for path in sorted(run.out.glob("checkpoints/*/state.json"))]
    assert [state["progress"]["step"] for state in states] == [20, 40], "the best two, though no step was a 1000th"
    assert all(state["score"] is not None and state["progress"]["pending"] == "" for state in states)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_loss_that_is_no_number_ends_the_job_with_the_step_and_a_dump(nodes: Nodes, tmp_path: Path) -> None:
    make_token_folder(tmp_path / "tokens")
    run = Run(tmp_path / "tokens", tmp_path / "run", nodes.address)
    run.start("1", "--training.learning_rate", "1e30", "--training.warmup_steps", "0", "--training.spike_factor", "0")
    assert run.process.wait(200) == 2, run.log.read_text()
    assert "training stopped at step" in run.log.read_text() and "Traceback" not in run.log.read_text()
    assert json.loads((run.out / FAILURE / REPORT).read_text())["examples"]
