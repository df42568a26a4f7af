"""Models are placed on machines as they are, and not on the sum of their cores."""

from __future__ import annotations

import pytest

from tests.inference.conftest import make_job
from tfray.config import ClusterConfig, InferenceConfig
from tfray.errors import InputError
from tfray.inference import steps
from tfray.inference.steps import place_actors, share_cores


@pytest.mark.parametrize(
    ("nodes", "cores", "room"), [([2, 2, 2], 2, 3), ([3, 3], 2, 2), ([8], 3, 2), ([1, 4], 4, 1), ([5, 2, 1], 1, 8)]
)
def test_a_model_finds_its_cores_on_one_machine(nodes: list[float], cores: int, room: int) -> None:
    config = InferenceConfig(cpus_per_actor=cores, use_gpu="no")
    assert place_actors(config, ClusterConfig(), nodes, 0).fewest == room
    with pytest.raises(InputError, match=rf"the cluster has room for {room}"):
        place_actors(InferenceConfig(cpus_per_actor=cores, actors=room + 1), ClusterConfig(), nodes, 0)


def test_more_cores_than_any_machine_has_are_refused_and_not_waited_for() -> None:
    config = InferenceConfig(cpus_per_actor=4)
    with pytest.raises(InputError, match=r"cpus_per_actor=4.*the largest has 2"):
        place_actors(config, ClusterConfig(), [2, 2], 0)
    assert place_actors(config, ClusterConfig(autoscaling=True), [2, 2], 0).fewest == 1
    assert place_actors(config, ClusterConfig(), [2, 2], 3).fewest == 3, "with a GPU each"


@pytest.mark.parametrize(("gpus", "most"), [(0, 3), (2, 1)])
def test_max_actors_alone_limits_the_models_where_there_is_room_for_more(gpus: int, most: int) -> None:
    found = place_actors(InferenceConfig(max_actors=most), ClusterConfig(), [8], gpus)
    assert (found.fewest, found.most) == (most, most)


def test_int8_on_gpus_is_refused_before_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "local_gpus", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"int8' is for CPUs.*use_gpu no"):
        steps.check_room(make_job("model", "a.parquet", "out", precision="int8"))
    steps.check_room(make_job("model", "a.parquet", "out", precision="int8", use_gpu="no"))


@pytest.mark.parametrize(("cores", "gpus"), [(1, 1), (2, 1), (4, 4), (8, 8), (9, 8), (16, 4)])
def test_beside_models_on_gpus_those_who_read_and_write_find_room(cores: int, gpus: int) -> None:
    models = place_actors(InferenceConfig(use_gpu="yes"), ClusterConfig(), [float(cores)], gpus)
    models, spare, share = share_cores(models, cores, grows=False)
    assert models.fewest * models.cpus + 2 * share <= cores and spare >= 1 and min(models.cpus, share) > 0
