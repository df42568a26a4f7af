"""Killed anywhere, moved to more or fewer workers and started again: the same examples in the same steps and lanes."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster import Nodes, kill
from tests.training.runs import LANES, STEPS, Run, read_trace
from tests.training.token_folders import make_token_folder

pytestmark = pytest.mark.ray

ROUNDS = int(os.environ.get("TFRAY_KILLS", "1"))
"""How often a worker, a node and the driver are each killed."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "tokens"
    make_token_folder(folder)
    return folder


@pytest.mark.timeout(1500)
def test_the_sequence_of_examples_is_the_same_whatever_is_killed_and_however_many_workers_there_are(
    nodes: Nodes, tokens: Path, tmp_path: Path
) -> None:
    calm, killed = Run(tokens, tmp_path / "calm", nodes.address), Run(tokens, tmp_path / "killed", nodes.address)
    calm.start("1")
    expected = calm.end()
    chance = random.Random(ROUNDS)
    kills: Counter[str] = Counter()
    workers = "2"
    killed.start(workers)
    for _ in range(ROUNDS):
        killed.wait_for(killed.step + chance.randrange(2, 15))
        for process in nodes.workers("RayTrainWorker")[: chance.randrange(1, 3)]:
            kill(process.pid)
            kills["worker"] += 1
        after = len(killed.events())
        killed.wait_for(killed.step + chance.randrange(2, 15), workers=2, after=after)
        nodes.tell("lose RayTrainWorker")
        nodes.tell("add")
        kills["node"] += 1
        for workers in ("1", "4"):
            killed.wait_for(killed.step + chance.randrange(2, 15), after=len(killed.events()))
            if killed.process.poll() is None:
                killed.process.kill()
                killed.process.wait()
                kills["driver"] += 1
                killed.start(workers)
    found = killed.end()
    starts = [event["workers"] for event in killed.events() if event["event"] == "start"]
    print(f"killed: {dict(kills)}; starts with {starts} workers")
    trace, other = read_trace(calm.out), read_trace(killed.out)
    assert set(trace) == {(step, lane) for step in range(STEPS) for lane in range(LANES)}
    assert {len(found) for found in trace.values()} == {1}
    assert {place: set(found) for place, found in other.items()} == {
        place: set(found) for place, found in trace.items()
    }, "what was done, once or again, was done with the same examples"
    assert found["steps"] == expected["steps"] == STEPS
    assert found["tokens"] == expected["tokens"]
    losses = [{event["step"]: event["loss"] for event in run.events() if "loss" in event} for run in (calm, killed)]
    assert losses[1][STEPS] == pytest.approx(losses[0][STEPS], rel=1e-3)
    assert found["best_score"] == pytest.approx(expected["best_score"], rel=1e-4)
    assert {1, 2, 4} <= set(starts)
