"""How many workers there are, on what, and which errors end training."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, RayTaskError

from tests.training.token_folders import make_token_folder
from tfray.cluster import connected
from tfray.config import ClusterConfig, ModelConfig, TrainingConfig, TrainJob, WorkerRange
from tfray.errors import InputError, StorageFailure
from tfray.training import fit, group
from tfray.training.fit import place_workers, was_preempted
from tfray.training.group import (
    MOST_JOINS,
    GiveUp,
    GroupBackend,
    GroupConfig,
    WorkerFailed,
    end_training,
    usable_workers,
)
from tfray.training.stop import Preempted
from tfray.training.train import train


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_workers_that_train_are_the_most_that_divide_the_lanes(workers: int, lanes: int) -> None:
    usable = usable_workers(workers, lanes)
    assert usable <= workers and lanes % usable == 0
    assert not any(lanes % count == 0 for count in range(usable + 1, workers + 1))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    sizes = {"CPU": 8.0, "GPU": 0.0}
    monkeypatch.setattr(fit, "cluster_total", lambda resource: sizes[resource])
    monkeypatch.setattr(fit, "node_cpus", lambda: [sizes["CPU"] / 2] * 2)
    return sizes


def test_a_fixed_number_of_workers_is_asked_for_as_it_is(cluster: dict[str, float]) -> None:
    placement = place_workers(TrainingConfig(workers=2), ClusterConfig(), lanes=4)
    assert placement.workers == 2 and placement.resources == {"CPU": 1.0} and placement.strategy == "SPREAD"


def test_elastic_workers_are_one_a_machine_on_cpus_and_no_more_than_divide_the_lanes(
    cluster: dict[str, float],
) -> None:
    placement = place_workers(TrainingConfig(workers=WorkerRange(min=1, max=7)), ClusterConfig(), lanes=4)
    assert placement.workers == (1, 4)
    assert 4.0 // placement.resources["CPU"] == 1


def test_nothing_stands_beside_the_workers_where_there_is_nothing_to_decode(cluster: dict[str, float]) -> None:
    cluster.update(CPU=16.0, GPU=2.0)
    job = TrainJob(tokens_folder="tokens", out="out")
    assert fit.place_job(job, has_valid=True).validates_beside
    assert not fit.place_job(job, has_valid=False).validates_beside
    on_actor = TrainJob(tokens_folder="tokens", out="out", training=TrainingConfig(valid_on="actor", workers=2))
    assert not fit.place_job(on_actor, has_valid=False).validates_beside


def test_gpus_are_used_where_there_are_enough_for_the_fewest_workers(cluster: dict[str, float]) -> None:
    cluster["GPU"] = 2
    placement = place_workers(TrainingConfig(workers=WorkerRange(min=2, max=4)), ClusterConfig(), lanes=4)
    assert placement.use_gpu and placement.resources["GPU"] == 1 and placement.strategy == "PACK"
    assert not place_workers(TrainingConfig(workers=4), ClusterConfig(), lanes=4).use_gpu


def test_on_one_small_machine_workers_leave_room_for_the_data(cluster: dict[str, float]) -> None:
    cluster["CPU"] = 2.0
    assert place_workers(TrainingConfig(workers=2), ClusterConfig(), lanes=4).resources == {"CPU": 0.5}
    with pytest.raises(InputError, match=r"training\.workers=4 need 2\.25 CPUs"):
        place_workers(TrainingConfig(workers=4), ClusterConfig(), lanes=4)


def test_more_cores_for_a_worker_than_any_machine_has_are_refused_with_the_largest(cluster: dict[str, float]) -> None:
    config = TrainingConfig(workers=1, cpus_per_worker=5)
    with pytest.raises(InputError, match=r"cpus_per_worker=5 is more than any machine .* the largest has 4; use that"):
        place_workers(config, ClusterConfig(), lanes=4)
    assert place_workers(config, ClusterConfig(autoscaling=True), lanes=4).resources == {"CPU": 5.0}


def test_fewer_cores_for_each_worker_are_proposed_where_these_were_set_and_are_too_many(
    cluster: dict[str, float],
) -> None:
    lower = "or lower training.cpus_per_worker"
    for cores, gpu, is_proposed in [(3.0, "no", True), (None, "no", False), (1.0, "yes", False)]:
        config = TrainingConfig(workers=4 if cores else 16, cpus_per_worker=cores, use_gpu=gpu)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="use fewer workers") as refused:
            place_workers(config, ClusterConfig(), lanes=16)
        assert (lower in str(refused.value)) == is_proposed


class Failed(Exception):
    """As Ray Train's error holds those of its workers."""

    def __init__(self, *failures: Exception) -> None:
        self.worker_failures = dict(enumerate(failures))


def test_workers_that_made_room_are_no_failure_and_other_errors_are_raised() -> None:
    assert not was_preempted(None)
    assert was_preempted(Failed(Preempted("moved"), ConnectionError("lost")))
    with pytest.raises(Failed):
        was_preempted(Failed(ConnectionError("lost")))
    with pytest.raises(InputError, match="shard"):
        was_preempted(Failed(ConnectionError("lost"), InputError("shard is damaged")))


def save(out: Path, step: int) -> None:
    state = out / f"checkpoints/step-{step:08d}/state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")


def test_losses_count_only_where_no_checkpoint_was_written_in_between(tmp_path: Path) -> None:
    callback = GiveUp(str(tmp_path), 2)
    for step in range(1, 20):  # on a pre-emptible cluster, for ever
        callback.after_exception(None, {0: ConnectionError("gone")})
        callback.after_exception(None, {0: WorkerFailed("connection closed by peer"), 1: ConnectionError("gone")})
        save(tmp_path, step)
    for _ in range(2):
        callback.after_exception(None, {0: ConnectionError("gone")})
    callback.after_exception(None, {0: Preempted("all was saved at this very step")})
    with pytest.raises(InputError, match=r"failed 3 times in a row since .*step-00000019.* was written.*: gone; see"):
        callback.after_exception(
            None, {0: WorkerFailed("connection closed by peer"), 1: ConnectionError("gone\nid: 7")}
        )


def test_an_error_that_comes_again_and_again_is_raised_as_it_is(tmp_path: Path) -> None:
    callback = GiveUp(str(tmp_path), 1)
    callback.after_exception(None, {0: WorkerFailed("a bug")})
    with pytest.raises(WorkerFailed, match="a bug"):
        callback.after_exception(None, {0: WorkerFailed("a bug")})


def test_a_storage_that_fails_is_a_failure_like_others_and_is_named_at_the_end(tmp_path: Path) -> None:
    callback = GiveUp(str(tmp_path), 1)
    failure = StorageFailure("'s3://runs' cannot be read: see that it can be reached")
    callback.after_exception(None, {0: failure})
    with pytest.raises(StorageFailure, match="can be reached"):
        callback.after_exception(None, {0: failure})


def test_what_a_restart_cannot_mend_ends_training_at_once(tmp_path: Path) -> None:
    callback = GiveUp(str(tmp_path), 99)
    callback.after_exception(None, {0: ConnectionError("lost")})
    with pytest.raises(InputError, match="disk is full"):
        callback.after_exception(None, {0: ConnectionError("lost"), 1: InputError("disk is full")})


@pytest.mark.ray
def test_one_worker_has_no_process_beside_it_that_nobody_asks_anything_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.state import actors

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tokens = make_token_folder(tmp_path / "tokens")
    job = TrainJob(
        tokens_folder=tokens.folder,
        out=str(tmp_path / "out"),
        model=ModelConfig(preset="tiny"),
        training=TrainingConfig(max_steps=2, valid_rows=0, use_gpu="no"),
    )
    with connected(ClusterConfig(num_cpus=1)):
        train(job)
        kinds = {actor["ActorClassName"] for actor in actors().values()}
    assert {"TrainController", "RayTrainWorker"} <= kinds
    assert not kinds & {"DatasetManager", "PlacementGroupCleaner", "SplitCoordinator", "Bell"}


def test_workers_that_fit_by_their_sum_and_on_no_machines_are_refused(
    cluster: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "node_cpus", lambda: [6.0, 3.0])
    cluster["CPU"] = 9.0
    config = TrainingConfig(workers=2, cpus_per_worker=4)
    with pytest.raises(InputError, match=r"training\.workers=2 with 4 CPUs each.* have room for 1"):
        place_workers(config, ClusterConfig(), lanes=2)
    assert place_workers(config, ClusterConfig(autoscaling=True), lanes=2).workers == 2


class Workers:
    """What Ray's group of workers is to a backend."""

    def __init__(self, *well: bool) -> None:
        self.well, self.asked = well, []

    def __len__(self) -> int:
        return len(self.well)

    def execute_single_async(self, rank: int, function: object, *_: object) -> object:
        if function is end_training:
            self.asked.append(rank)
        return self.well[rank]


@pytest.mark.parametrize(
    ("well", "asked"), [((True, True, False), [0, 1]), ((True, False, True), []), ((True,) * 4, [0, 1, 2, 3])]
)
def test_a_surplus_worker_that_is_lost_keeps_none_of_the_others_from_saving(
    well: tuple[bool, ...], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group.ray, "get", lambda values: values)
    workers = Workers(*well)
    GroupBackend().on_shutdown(workers, GroupConfig(lanes=4))
    assert workers.asked == asked


def test_workers_that_cannot_find_each_other_are_started_anew_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RayTaskError("join", "connection closed by peer", ConnectionError())

    monkeypatch.setattr(group.ray, "get", fail)
    monkeypatch.setattr(Workers, "execute", lambda *_: [], raising=False)
    monkeypatch.setattr(Workers, "execute_single", lambda *_: "tcp://here:1", raising=False)
    backend = GroupBackend()
    for _ in range(MOST_JOINS - 1):
        with pytest.raises(ActorDiedError):
            backend.on_start(Workers(True, True), GroupConfig(lanes=2))
    with pytest.raises(RayTaskError):
        backend.on_start(Workers(True, True), GroupConfig(lanes=2))
