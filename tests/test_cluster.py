"""Where Ray is reached, what is said where it is not, and how one runs that is started here."""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest

from tfray.cluster import connected, start
from tfray.config import ClusterConfig
from tfray.errors import InputError
from tfray.local_ray import environment


@pytest.mark.parametrize(
    ("given", "environment", "used", "named"),
    [
        ("here:1", "there:2", "here:1", r"^cluster\.address='here:1' does not answer: nobody; .*leave the address out"),
        (None, "there:2", "there:2", r"^RAY_ADDRESS='there:2' .*does not answer: nobody; .*`unset RAY_ADDRESS`"),
        (None, None, "local", r"^no local Ray starts: nobody; .*cluster\.address"),
    ],
)
def test_a_ray_that_does_not_answer_is_named_by_the_source_of_its_address(
    monkeypatch: pytest.MonkeyPatch, given: str | None, environment: str | None, used: str, named: str
) -> None:
    import ray

    def init(address: str, **_: object) -> None:
        assert address == used
        raise ConnectionError("nobody")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    with pytest.raises(InputError, match=named):
        start(ClusterConfig(address=given))


def test_a_local_ray_that_does_not_start_in_time_is_a_message_and_a_mistake_of_ours_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def init(error: Exception, **_: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", partial(init, Exception("The current node timed out during startup.")))
    with pytest.raises(InputError, match=r"^no local Ray starts: The current node timed out .* logs in /tmp/ray"):
        start(ClusterConfig())
    monkeypatch.setattr(ray, "init", partial(init, TypeError("no such option")))
    with pytest.raises(TypeError, match="no such option"):
        start(ClusterConfig())


@pytest.mark.ray
def test_the_workers_of_a_local_ray_are_no_nicer_than_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(ClusterConfig(num_cpus=1)):
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


@pytest.mark.ray
def test_what_a_local_ray_is_told_is_unknown_to_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "1")
    own = set(environment(cpus=1)) - {"RAY_worker_niceness"}
    assert own and not own & set(os.environ)
    with connected(ClusterConfig(num_cpus=1)):
        assert ray.get(ray.remote(lambda: os.environ["RAY_worker_niceness"]).remote()) == "1"
        assert own <= ray.get(ray.remote(lambda: set(os.environ)).remote())
        assert not own & set(os.environ)
    assert os.environ["RAY_worker_niceness"] == "1"


@pytest.mark.ray
def test_one_core_with_many_actors_is_nothing_that_people_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(ClusterConfig(num_cpus=1)):
        kind: Any = ray.remote(num_cpus=0)(Counter)
        actors = [kind.remote() for _ in range(13)]
        assert ray.get([actor.total.remote() for actor in actors]) == [0] * 13
        time.sleep(1)  # what Ray says takes a while
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.ray
@pytest.mark.parametrize(
    ("dashboard", "there"), [(False, {"gcs_server", "raylet"}), (True, {"gcs_server", "raylet", "dashboard"})]
)
def test_a_local_ray_has_the_processes_alone_that_a_job_needs(
    monkeypatch: pytest.MonkeyPatch, dashboard: bool, there: set[str]
) -> None:
    import ray
    from ray._private import node, worker

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    usual = node.Node
    with connected(ClusterConfig(num_cpus=1, dashboard=dashboard)):
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        started = {name for name, processes in vars(worker)["_global_node"].all_processes.items() if processes}
        assert there <= started
        others = {"reaper", "monitor", "log_monitor"} if dashboard else {"reaper"}
        assert started <= there | others
    assert node.Node is usual, "who starts another Ray in this process gets a whole one"
