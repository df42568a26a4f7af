"""More workers, and SIGTERM to a worker and the driver: training saves and goes on, no step is lost or done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Nodes
from tests.training.runs import LANES, STEPS, Run, read_trace
from tests.training.token_folders import make_token_folder
from tfray.training.stop import EXIT_CODE

pytestmark = pytest.mark.ray

ELASTIC = '{"min": 1, "max": 4}'


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and one more node."""
    nodes = Nodes(2)
    yield nodes
    nodes.stop()


def starts(run: Run) -> list[dict]:
    """Return the events of workers that began to train."""
    return [event for event in run.events() if event["event"] == "start"]


def wait_for_start(run: Run, count: int) -> dict:
    """Return the event of the so many-th start of workers, once a step was taken after it."""
    deadline = time.monotonic() + 200
    while len(starts(run)) < count or run.events()[-1]["event"] == "start":
        assert run.process.poll() is None and time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.1)
    return starts(run)[count - 1]


@pytest.mark.timeout(900)
def test_no_step_is_lost_or_done_twice_when_workers_and_driver_are_asked_to_go_or_there_is_room_for_more(
    nodes: Nodes, tmp_path: Path
) -> None:
    make_token_folder(tmp_path / "tokens")
    run = Run(tmp_path / "tokens", tmp_path / "run", nodes.address)
    # No checkpoint but those that are asked for: every step that is not saved in time would be done again.
    calm = ("--training.checkpoint_every", "1000", "--training.cpus_per_worker", "0.6")
    run.start(ELASTIC, *calm, pause=0.4)
    first = wait_for_start(run, 1)
    assert (first["workers"], first["surplus_workers"]) == (2, 0)
    # Now, since later it could hit the worker that has nothing to do, and so nothing to save.
    nodes.workers("RayTrainWorker")[0].send_signal(signal.SIGTERM)
    assert wait_for_start(run, 2)["step"] > 0
    nodes.tell("add")
    more = wait_for_start(run, 3)
    assert (more["workers"], more["surplus_workers"]) == (2, 1), "three do not divide four lanes"
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == EXIT_CODE, run.log.read_text()
    assert "goes on where it was" in run.log.read_text()
    run.start(ELASTIC, *calm)
    assert run.end()["steps"] == STEPS
    print("starts:", [(event["step"], event["workers"], event["surplus_workers"]) for event in starts(run)])
    trace = read_trace(run.out)
    assert set(trace) == {(step, lane) for step in range(STEPS) for lane in range(LANES)}
    assert {len(found) for found in trace.values()} == {1}
