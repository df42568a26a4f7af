"""Models are placed on machines as they are, and not on the sum of their cores."""

from __future__ import annotations

import pytest

from tfray.config import ClusterConfig, InferenceConfig
from tfray.errors import InputError
from tfray.inference.steps import place_actors


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
