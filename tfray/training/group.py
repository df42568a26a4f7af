"""The group of workers that train: as many of those that Ray starts as divide the lanes, and how they are asked to end.

Ray starts and stops workers as a whole; this is what happens on each of them right after and right before. Ray calls
`on_shutdown` when it changes the number of workers, too, so that nothing trained since the last checkpoint is lost.
"""

from __future__ import annotations

import datetime
import logging
import os
import signal
import socket
from dataclasses import dataclass

import ray
import ray.util
import torch.distributed as dist
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import UserCallback
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig

from tfray.checkpoint.state import published_checkpoints
from tfray.config.batches import usable_workers
from tfray.errors import InputError, StorageFailure
from tfray.training.stop import GRACE_SECONDS, WISHES, Preempted, Wish
from tfray.units.stream import find, find_raised

logger = logging.getLogger(__name__)

MOST_JOINS = 5
"""How often in a row workers may fail to find each other."""
TIMEOUT = datetime.timedelta(minutes=30)
"""How long a worker waits for the others in a collective; a lost one is noticed much sooner, by Ray."""


@dataclass
class GroupConfig(TorchConfig):
    """How torch's workers find each other."""

    lanes: int = 1

    @property
    def backend_cls(self) -> type[Backend]:  # type: ignore[override]
        return GroupBackend


class GroupBackend(Backend):
    """Ray Train's hooks around a group of workers; they run in its controller."""

    share_cuda_visible_devices = True
    failed_joins = 0

    def on_start(self, worker_group, backend_config: BackendConfig) -> None:
        """Make one process group of the workers that divide the lanes."""
        assert isinstance(backend_config, GroupConfig)
        worker_group.execute(heed_sigterm)
        usable = usable_workers(len(worker_group), backend_config.lanes)
        address = worker_group.execute_single(0, free_address)
        joining = [
            worker_group.execute_single_async(rank, join, backend_config.backend, address, rank, usable)
            for rank in range(usable)
        ]
        try:
            ray.get(joining)  # type: ignore[call-overload]
        except RayTaskError as error:  # one has gone meanwhile, or its port; Ray starts anew for a dead actor alone
            self.failed_joins += 1
            if self.failed_joins == MOST_JOINS:
                raise
            raise ActorDiedError from error
        self.failed_joins = 0

    def on_shutdown(self, worker_group, backend_config: BackendConfig) -> None:
        """Let workers that still train save and end first; where one is lost, the others wait for it in vain."""
        assert isinstance(backend_config, GroupConfig)
        usable = range(usable_workers(len(worker_group), backend_config.lanes))  # the others have nothing to save
        asked = [worker_group.execute_single_async(rank, is_well) for rank in usable]
        if all(ray.get(asked)):  # type: ignore[call-overload]
            ending = [worker_group.execute_single_async(rank, end_training, GRACE_SECONDS) for rank in usable]
            ray.get(ending)  # type: ignore[call-overload]


class WorkerFailed(Exception):
    """A worker's code has raised what nobody foresaw; the message is its traceback."""


class GiveUp(UserCallback):
    """Ends training where starting again does not help, which Ray would do for ever: at once where an input cannot
    be used, or after more than `most` failures between which no newer checkpoint was written."""

    def __init__(self, out: str, most: int) -> None:
        self.out, self.most = out, most
        self.failures, self.newest = 0, ""

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        errors = [*worker_exceptions.values()]
        for error in errors:
            if (refusal := find_raised(error, InputError)) is not None:
                raise refusal
        if any(find(error, Preempted) for error in errors):
            return
        newest = max(published_checkpoints(self.out), default="")
        self.failures = 1 if newest > self.newest else self.failures + 1
        self.newest = newest
        if self.failures > self.most:
            raise self.verdict(errors)

    def verdict(self, errors: list[Exception]) -> Exception:
        """Return what people are told: that workers were lost, or else what one of them raised."""
        for error in errors:
            if (failure := find_raised(error, StorageFailure)) is not None:
                return failure
        lost = next((error for error in errors if not isinstance(error, WorkerFailed)), None)
        if lost is None:
            return errors[0]
        place = f"since {self.newest!r} was written" if self.newest else "before the first checkpoint"
        return InputError(
            f"training gives up: workers were lost or failed {self.failures} times in a row {place}, "
            f"training.max_failures={self.most} may be; the last time: {str(lost).strip().splitlines()[0]}; see "
            "whether they run out of memory or machines are taken away, lower training.checkpoint_every so that there "
            "is progress in between, or raise training.max_failures; the same command goes on"
        )


def heed_sigterm() -> None:
    """Let SIGTERM end this worker after its present step; this runs in the main thread, training in another."""
    signal.signal(signal.SIGTERM, WISHES.on_sigterm)


def free_address() -> str:
    """Return where the workers can meet, on this one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def join(backend: str, address: str, rank: int, workers: int) -> None:
    """Make this process one of several; one alone needs no group."""
    if workers > 1:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=workers, timeout=TIMEOUT)


def is_well() -> bool:
    """Say whether this worker trains, or has nothing to do."""
    return WISHES.is_training or WISHES.is_surplus


def end_training(seconds: float) -> None:
    """Have this worker save and end."""
    if WISHES.is_training and not WISHES.end_and_wait(seconds):
        logger.warning(
            "training did not end within %.0f s: what it did since its last checkpoint is done again", seconds
        )


def is_node_leaving() -> bool:
    """Say whether Ray has announced that a node of a worker will be taken away."""
    # Ray's public function for this is a barrier over all workers, which would be waited for in every step.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def ask_to_save_once(was_asked: bool) -> bool:
    """Wish for a checkpoint when a node is about to leave; return whether that was wished for now or before."""
    if not was_asked and is_node_leaving():
        WISHES.ask(Wish.SAVE)
        return True
    return was_asked
