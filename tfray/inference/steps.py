"""The steps of the predict job as pools of actors: how many, and what each of them takes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tfray.cluster import cluster_total, node_cpus
from tfray.config import ClusterConfig, InferenceConfig, PredictJob
from tfray.errors import InputError
from tfray.inference.assignment import Assignment
from tfray.inference.encode import EncodeUnit
from tfray.inference.handover import Answered, Encoded
from tfray.inference.planning import local_gpus
from tfray.inference.write import WriteUnit
from tfray.units.plan import Unit
from tfray.units.stream import Step

# Reading and writing take some percent of the time that a CPU needs for the model: they share its cores.
MODEL_SHARE, HELPER_SHARE = 0.8, 0.1
LEAST_WAITING_BYTES = 64 << 20


class ModelActors(NamedTuple):
    """How many actors have the model, and what each takes."""

    fewest: int
    most: int
    cpus: float
    gpus: float


def make_steps(job: PredictJob, assignment: Assignment, weights: np.ndarray) -> list[Step]:
    """Return the steps of a job; raises InputError where its actors find no room in the cluster."""
    nodes = node_cpus()
    models = place_models(job, nodes, int(cluster_total("GPU")))
    models, spare, share = share_cores(models, sum(nodes), job.cluster.autoscaling)
    helpers = 1, spare
    return [
        Step(EncodeUnit, (assignment,), helpers, cpus=share),
        Step(
            answer_unit,
            (assignment, models.most, bool(models.gpus)),
            (models.fewest, models.most),
            models.cpus,
            models.gpus,
            shared=weights,
        ),
        Step(WriteUnit, (assignment,), helpers, cpus=share),
    ]


def share_cores(models: ModelActors, cores: float, grows: bool) -> tuple[ModelActors, int, float]:
    """Return the actors with the model, how many others there may be of a kind, and the cores of each of these.

    All must find room together: Ray lets those that do not wait, and what no one writes is not committed.
    """
    if not models.gpus:
        return models, max(1, models.fewest // 2), HELPER_SHARE
    if grows or cores >= models.fewest + 2:
        return models, max(1, (int(cores) - models.fewest) // 2), 1.0
    own = math.floor(100 * MODEL_SHARE * cores / models.fewest) / 100
    return models._replace(cpus=min(models.cpus, own)), 1, HELPER_SHARE * min(1.0, cores)


def answer_unit(
    assignment: Assignment, models: int, on_gpu: bool, weights: np.ndarray
) -> Callable[[Encoded], Answered]:
    """Return the stage with the model, one of so many; its actors alone import torch, which takes seconds."""
    from tfray.inference.answer import AnswerUnit

    return AnswerUnit(assignment, weights, on_gpu, models)


def check_room(job: PredictJob) -> None:
    """Raise InputError where this machine alone has no room; a cluster is asked once it is reached."""
    if not (job.cluster.address or os.environ.get("RAY_ADDRESS")):
        cpus = job.cluster.num_cpus or os.cpu_count() or 1
        place_models(job, [cpus], local_gpus())


def place_models(job: PredictJob, nodes: Sequence[float], gpus: int) -> ModelActors:
    """Return the actors with the model; raises InputError where they find no room, or cannot compute as is wanted."""
    models = place_actors(job.inference, job.cluster, nodes, gpus)
    job.generation.check_device(is_cpu=not models.gpus)
    return models


def place_actors(config: InferenceConfig, cluster: ClusterConfig, nodes: Sequence[float], gpus: int) -> ModelActors:
    """Return the actors with the model, given the CPU cores of each node; raises InputError where they find no room."""
    use_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and gpus > 0)
    groups = sum(int(cores // config.cpus_per_actor) for cores in nodes)
    room, kind = (gpus, "GPU") if use_gpu else (groups, f"{config.cpus_per_actor} CPU of one machine")
    if not room and not use_gpu and not cluster.autoscaling:
        raise InputError(
            f"inference.cpus_per_actor={config.cpus_per_actor} is more than any machine of the cluster has: the "
            f"largest has {int(max(nodes, default=0))}; use that at most"
        )
    fewest = config.actors or max(1, min(room, config.max_actors or room))
    if fewest > room and not cluster.autoscaling:
        raise InputError(
            f"inference.actors={fewest} need {kind} each, the cluster has room for {room}; use at most {room}, "
            "or say --cluster.autoscaling true if it grows on demand"
        )
    grown = 1 << 16 if cluster.autoscaling else fewest
    most = config.max_actors or grown
    own = 1.0 if use_gpu else MODEL_SHARE * config.cpus_per_actor
    return ModelActors(fewest, max(fewest, most), own, 1.0 if use_gpu else 0.0)


def waiting_bytes(units: list[Unit], steps: list[Step]) -> int:
    """Return how many bytes may wait between the steps: some units for each actor, encoded or answered."""
    largest = max(unit.bytes for unit in units)
    return max(LEAST_WAITING_BYTES, 8 * largest * (steps[1].actors[0] + 2))
