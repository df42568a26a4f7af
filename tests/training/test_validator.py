"""Decoding beside the training: where there is room for it, and which answers come for which weights."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from tfray.config import ClusterConfig, TrainingConfig, WorkerRange
from tfray.errors import InputError
from tfray.local_ray import few_processes
from tfray.model.architecture import Architecture
from tfray.tokens.shards import TokenFolder
from tfray.training import validator as validator_file
from tfray.training.validation import Decoder, Finding, Weights
from tfray.training.validator import ActorValidator, Room, choose_place

ALONE = Room(cpus=2, gpus=0, machines=1, taken_cpus=1.25, taken_gpus=0)
SPARE_MACHINE = Room(cpus=8, gpus=0, machines=3, taken_cpus=4.25, taken_gpus=0)
FULL_MACHINES = SPARE_MACHINE._replace(machines=2)
SPARE_GPU = Room(cpus=16, gpus=3, machines=1, taken_cpus=2.25, taken_gpus=2)
FULL_GPUS = SPARE_GPU._replace(gpus=2)


@pytest.fixture(autouse=True)
def few_ray_processes() -> Iterator[None]:
    """Rays that start here do so in two seconds."""
    with few_processes():
        yield


@pytest.mark.parametrize(
    ("room", "place"),
    [
        (ALONE, "worker"),
        (SPARE_MACHINE, "actor"),
        (FULL_MACHINES, "worker"),
        (SPARE_GPU, "actor"),
        (FULL_GPUS, "worker"),
        (SPARE_GPU._replace(cpus=3), "worker"),
    ],
)
def test_it_is_beside_the_training_where_nothing_is_taken_from_the_workers(room: Room, place: str):
    config = TrainingConfig(workers=2)
    assert choose_place(config, ClusterConfig(), room) == place


def test_elastic_workers_are_counted_at_their_most():
    config = TrainingConfig(workers=WorkerRange(min=1, max=4))
    assert choose_place(config, ClusterConfig(), SPARE_MACHINE) == "worker"


def test_there_is_no_actor_where_it_is_not_wanted():
    assert choose_place(TrainingConfig(valid_rows=0, valid_on="actor"), ClusterConfig(), SPARE_GPU) == "worker"
    assert choose_place(TrainingConfig(valid_on="worker"), ClusterConfig(), SPARE_GPU) == "worker"


def test_the_best_checkpoints_need_the_scores_at_once():
    late = TrainingConfig(keep_best_checkpoints=2, best_metric="bleu", valid_on="auto")
    assert choose_place(late, ClusterConfig(), SPARE_GPU) == "worker"
    assert choose_place(TrainingConfig(keep_best_checkpoints=2), ClusterConfig(), SPARE_GPU) == "actor"
    with pytest.raises(InputError, match="knows the bleu only after"):
        choose_place(
            TrainingConfig(keep_best_checkpoints=2, best_metric="bleu", valid_on="actor"), *[ClusterConfig(), SPARE_GPU]
        )


def test_an_actor_without_room_is_refused_unless_the_cluster_grows():
    config = TrainingConfig(valid_on="actor")
    with pytest.raises(InputError, match=r"training\.valid_on='actor' needs a CPU beside .* 1\.25 CPUs"):
        choose_place(config, ClusterConfig(), ALONE)
    with pytest.raises(InputError, match="needs a CPU and a GPU beside"):
        choose_place(config, ClusterConfig(), FULL_GPUS)
    assert choose_place(config, ClusterConfig(autoscaling=True), ALONE) == "actor"


def helpers() -> ModuleType:
    """Return the module of tests/training/test_validation.py, whose helpers are used here."""
    spec = importlib.util.spec_from_file_location("validation_helpers", Path(__file__).with_name("test_validation.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(validator: ActorValidator) -> list[Finding]:
    """Return what comes until all that was asked for is answered, as the end of training does."""
    found: list[Finding] = []
    deadline = time.monotonic() + 120
    while validator.awaited is not None:
        assert time.monotonic() < deadline
        found += validator.poll(0.2)
    return found


class Subject(NamedTuple):
    """What is judged, and how."""

    tokens: TokenFolder
    architecture: Architecture
    config: TrainingConfig
    weights: Weights


@pytest.fixture
def subject(tmp_path: Path, write_tokens) -> Subject:
    """Return random weights of a small model over words."""
    shared = helpers()
    tokens = shared.write_words(tmp_path, write_tokens)
    architecture = shared.architecture_for(tokens.tokenizer)
    return Subject(tokens, architecture, shared.CONFIG, shared.random_weights(architecture))


@pytest.mark.ray
def test_the_newest_weights_wait_and_answers_are_of_the_weights_that_were_judged(subject: Subject):
    import ray

    tokens, architecture, config, weights = subject
    decoder = Decoder(tokens, architecture, config, torch.device("cpu"))

    def weights_of(step: int) -> Weights:
        return {name: weight * (1 + step / 10) for name, weight in weights.items()}

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        validator = ActorValidator(tokens, architecture, config)
        assert validator.poll(0) == [] and validator.awaited is None
        for step in (1, 2, 3):  # far faster than the actor starts
            validator.offer(step, weights_of(step))
        assert validator.awaited == 3
        found = finish(validator)
        assert [finding.step for finding in found] == [1, 3]
        for finding in found:
            assert finding.metrics == decoder.scores(decoder.decode(weights_of(finding.step)))
            assert torch.equal(
                finding.weights["embedding.tokens.weight"], weights_of(finding.step)["embedding.tokens.weight"]
            )
        ray.kill(validator.actor, no_restart=False)  # as if its node was lost
        validator.offer(4, weights_of(4))
        found = []
        while not found:
            time.sleep(0.2)
            found = validator.poll(0)
        assert [finding.step for finding in found] == [4]
        assert finish(validator) == []
    finally:
        ray.shutdown()


@pytest.mark.ray
def test_weights_that_cannot_be_scored_are_named_and_training_goes_on(
    subject: Subject, caplog: pytest.LogCaptureFixture
):
    import ray

    tokens, architecture, config, weights = subject
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        validator = ActorValidator(tokens, architecture, config)
        validator.offer(1, {"no such weight": torch.zeros(1)})
        assert finish(validator) == []
        assert "validation of step 1 has no scores, and training goes on without: RuntimeError: " in caplog.text
        validator.offer(2, weights)
        (finding,) = finish(validator)
        assert finding.step == 2
    finally:
        ray.shutdown()


class Deadly:
    """Dies of whatever it is asked to score."""

    def __init__(self, *settings: object) -> None:
        pass

    def score(self, arrays: dict) -> None:
        os._exit(1)

    def is_ready(self) -> bool:
        return True


@pytest.mark.ray
def test_an_actor_that_dies_each_time_hangs_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import ray

    tokens, architecture, config, weights = subject
    monkeypatch.setattr(validator_file, "DecodingActor", Deadly)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        validator = ActorValidator(tokens, architecture, config)
        validator.offer(1, weights)
        assert finish(validator) == []
        assert "validation of step 1 has no scores" in caplog.text
    finally:
        ray.shutdown()


@pytest.mark.ray
def test_an_actor_lost_for_good_leaves_the_newest_weights_to_the_worker(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import ray
    from ray.cluster_utils import Cluster

    tokens, architecture, config, weights = subject
    monkeypatch.setattr(validator_file, "START_SECONDS", 2.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    node = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    try:
        validator = ActorValidator(tokens, architecture, config)
        validator.offer(1, weights)
        assert [finding.step for finding in finish(validator)] == [1]
        cluster.remove_node(node)
        validator.offer(2, weights)
        assert [finding.step for finding in finish(validator)] == [2]
        assert "validation of step 2: its actor finds no place in the cluster; decoded here" in caplog.text
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
def test_an_actor_that_never_finds_room_leaves_the_newest_weights_to_the_worker(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    import ray

    tokens, architecture, config, weights = subject
    monkeypatch.setattr(validator_file, "START_SECONDS", 0.5)
    ray.init(num_cpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        validator = ActorValidator(tokens, architecture, config)
        validator.offer(1, weights)
        validator.offer(2, weights)
        (finding,) = finish(validator)
        decoder = Decoder(tokens, architecture, config, torch.device("cpu"))
        assert (finding.step, finding.metrics) == (2, decoder.scores(decoder.decode(weights)))
    finally:
        ray.shutdown()
