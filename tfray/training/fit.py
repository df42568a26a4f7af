"""Ray Train around the workers: where they run, what restarts them, and how they are asked to end."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from tfray import storage
from tfray.batches.count import EpochCount
from tfray.cluster import cluster_total, node_cpus
from tfray.config import ClusterConfig, TrainingConfig, TrainJob
from tfray.config.batches import usable_workers
from tfray.errors import InputError, JobError
from tfray.training.assignment import Assignment
from tfray.training.bell import Bell
from tfray.training.display import Display
from tfray.training.group import GiveUp, GroupConfig
from tfray.training.launch import train_worker
from tfray.training.stop import GRACE_SECONDS, Preempted
from tfray.training.trace import wanted_trace
from tfray.training.validator import Room, choose_place
from tfray.units.lock import Ticket
from tfray.units.stream import find, find_raised

logger = logging.getLogger(__name__)

RESIZE_SECONDS = float(os.environ.get("TFRAY_RESIZE_SECONDS", "120"))
"""How often it is looked whether there is room for more workers: a resize costs some ten seconds."""
CPU_SHARE = 0.6
"""Of a node's cores, what an elastic worker reserves: no second one fits, and data tasks find room."""
DATA_CPUS = 0.25
"""Left over for what Ray runs beside the workers. (The feed reserves no share of it.)"""
START_SECONDS = "30"
"""How long Ray waits for room for the workers before it looks again how many there can be."""


class Placement(NamedTuple):
    """What workers run on."""

    workers: int | tuple[int, int]
    use_gpu: bool
    resources: dict[str, float]
    """Of each worker."""
    validates_beside: bool = False
    """True where an actor of its own decodes validation sources."""

    @property
    def strategy(self) -> str:
        """GPUs want to be near each other; on CPUs each worker is best alone."""
        return "PACK" if self.use_gpu else "SPREAD"


def fit(job: TrainJob, placement: Placement, epoch: EpochCount, ticket: Ticket) -> None:
    """Run the workers to the last step; `ticket` shows them that this job holds its place.

    Lost workers start again from the newest checkpoint. Interrupted, have them save before the interrupt goes on.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    bell = Bell(ticket.token)
    assignment = Assignment(job, epoch, placement.validates_beside, wanted_trace(), bell, ticket)
    display = Display(job.out)
    is_over = False
    while not is_over:
        trainer = make_trainer(assignment, placement)
        # In a thread of its own, since in the main thread Ray takes Ctrl-C for itself and says nothing.
        executor = ThreadPoolExecutor(1)
        training = executor.submit(trainer.fit)
        executor.shutdown(wait=False)
        try:
            follow_log(display, training)
        except KeyboardInterrupt:
            logger.info("training: interrupted; saves a checkpoint (once more ends it at once)")
            bell.ring()
            try:
                follow_log(display, training, GRACE_SECONDS)
            finally:
                bell.take_away()
            raise
        is_over = not was_preempted(training.exception())


def was_preempted(error: BaseException | None) -> bool:
    """Say whether workers ended only because they were asked to make room; raise any other error."""
    if error is None:
        return False
    failures = getattr(error, "worker_failures", {}).values()
    if any(find(failure, Preempted) for failure in failures):
        return True
    given_up = getattr(error, "controller_failure", None)  # with a worker's own error, as it came
    causes = [error, *failures, given_up]
    told = (find_raised(cause, JobError) for cause in causes if cause)
    raise next(filter(None, told), given_up or error) from None


class Trainer(TorchTrainer):
    """Ray's trainer without the actors that nobody asks anything of: each is a process that Ray wakes a hundred times a
    second, beside workers that wait for one another."""

    def _create_default_callbacks(self) -> list:
        """Leave out what hands out data sets, of which it is given none, and on a single node what outlives it."""
        needless = (DatasetsCallback, PlacementGroupCleanerCallback) if len(node_cpus()) == 1 else (DatasetsCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)]


def make_trainer(assignment: Assignment, placement: Placement) -> TorchTrainer:
    """Return Ray's trainer of a job."""
    job = assignment.job
    return Trainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.resources,
            placement_strategy=placement.strategy,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        torch_config=GroupConfig(backend="nccl" if placement.use_gpu else "gloo", lanes=job.batches.lanes),
        run_config=RunConfig(
            name="ray_train",
            storage_path=storage.as_uri(job.out),
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[GiveUp(job.out, job.training.max_failures)],
        ),
    )


def place_job(job: TrainJob, has_valid: bool) -> Placement:
    """Return what a job's workers run on, and whether validation data, if any, are decoded beside them.

    Raises InputError where the cluster has no room for them.
    """
    placement = place_workers(job.training, job.cluster, job.batches.lanes)
    return placement._replace(validates_beside=has_valid and decodes_beside(job, placement))


def decodes_beside(job: TrainJob, placement: Placement) -> bool:
    """Say whether validation decodes on an actor beside the workers."""
    taken = job.training.max_workers
    gpus = float(taken) if placement.use_gpu else 0.0
    cpus = taken * placement.resources["CPU"] + DATA_CPUS
    room = Room(cluster_total("CPU"), cluster_total("GPU"), len(node_cpus()), cpus, gpus)
    return choose_place(job.training, job.cluster, room) == "actor"


def place_workers(config: TrainingConfig, cluster: ClusterConfig, lanes: int) -> Placement:
    """Return how many workers run on what.

    Raises InputError where the cluster cannot hold the fewest of them, unless it grows on demand.
    """
    fewest, most = config.min_workers, usable_workers(config.max_workers, lanes)
    use_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and cluster_total("GPU") >= fewest)
    resources = {"CPU": cpus_each(config, cluster, most, use_gpu), **({"GPU": 1.0} if use_gpu else {})}
    if not cluster.autoscaling:
        check_room(config, resources)
    return Placement(config.workers if isinstance(config.workers, int) else (fewest, most), use_gpu, resources)


def cpus_each(config: TrainingConfig, cluster: ClusterConfig, most: int, use_gpu: bool) -> float:
    """Return the CPU cores that Ray reserves for each worker, of so many at most."""
    if config.cpus_per_worker:
        return config.cpus_per_worker
    if not use_gpu and not isinstance(config.workers, int):
        return round(CPU_SHARE * min(node_cpus(), default=1.0), 2)
    # Data tasks need a core too: whole cores for workers only where one is left over.
    return 1.0 if cluster_total("CPU") > most or cluster.autoscaling else 0.5


def check_room(config: TrainingConfig, resources: dict[str, float]) -> None:
    """Raise InputError where the fewest workers, with these resources each, find no room in the cluster."""
    fewest, cpus, largest = config.min_workers, resources["CPU"], max(node_cpus(), default=0.0)
    if config.cpus_per_worker and cpus > largest:
        raise InputError(
            f"training.cpus_per_worker={cpus:g} is more than any machine of the cluster has: the largest has "
            f"{largest:g}; use that at most"
        )
    wanted = {"CPU": fewest * cpus + DATA_CPUS, "GPU": fewest * resources.get("GPU", 0.0)}
    smaller = {"CPU": ", or lower training.cpus_per_worker" if config.cpus_per_worker else "", "GPU": ""}
    for resource, count in wanted.items():
        total = cluster_total(resource)
        if count > total:
            raise InputError(
                f"training.workers={fewest} need {count:g} {resource}s (data tasks included), the cluster has "
                f"{total:g}; use fewer workers{smaller[resource]}, or say --cluster.autoscaling true if it grows on "
                "demand"
            )
    places = sum(int(cores / cpus + 1e-6) for cores in node_cpus())
    if fewest > places:
        raise InputError(
            f"training.workers={fewest} with {cpus:g} CPUs each: the cluster's machines, each of which must hold a "
            f"worker whole, have room for {places}; use fewer workers, or lower training.cpus_per_worker"
        )


def follow_log(display: Display, training: Future, seconds: float = float("inf")) -> None:
    """Show people what the log says until training ends or time is over; the workers that write it may be elsewhere."""
    while not wait([training], timeout=1.0).done and seconds > 0:
        display.update()
        seconds -= 1
    display.update()
    display.draw()
