"""Decoding beside the training, on a Ray actor of its own: training goes on, and the scores come some steps later."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal, NamedTuple

import numpy as np
import ray
import torch

from tfray.config import ClusterConfig, TrainingConfig
from tfray.errors import InputError
from tfray.model.architecture import Architecture
from tfray.model.precision import prepare_cpu
from tfray.tokens.shards import TokenFolder
from tfray.training.validation import Decoder, Finding, Weights

logger = logging.getLogger(__name__)

Place = Literal["worker", "actor"]
START_SECONDS = 60.0
"""How long the end of training waits for an actor that is nowhere; then the worker decodes what is left."""
RETRIES = 2
"""How often weights on which the actor was lost are given to it again."""


class Room(NamedTuple):
    """What the cluster has, and what the workers at their most and the data tasks take of it."""

    cpus: float
    gpus: float
    machines: int
    taken_cpus: float
    taken_gpus: float


def choose_place(config: TrainingConfig, cluster: ClusterConfig, room: Room) -> Place:
    """Return where validation decodes; raises InputError where an actor is asked for and cannot be had.

    A worker on a CPU computes with all cores of its machine, so there is room beside it on another one only.
    """
    if not config.valid_rows or config.valid_on == "worker":
        return "worker"
    is_late = config.keep_best_checkpoints > 0 and config.best_metric != "loss"
    has_core = room.cpus - room.taken_cpus >= 1
    has_gpu = not room.taken_gpus or room.gpus - room.taken_gpus >= 1
    if config.valid_on == "auto":
        has_machine = bool(room.taken_gpus) or room.machines > config.max_workers
        return "actor" if has_core and has_gpu and has_machine and not is_late else "worker"
    if is_late:
        raise InputError(
            f"training.valid_on='actor' knows the {config.best_metric} only after the checkpoint is written, which "
            "training.keep_best_checkpoints goes by; use valid_on=worker or best_metric=loss"
        )
    if not (has_core and has_gpu) and not cluster.autoscaling:
        raise InputError(
            f"training.valid_on='actor' needs a CPU{' and a GPU' if room.taken_gpus else ''} beside the workers, who "
            f"take {room.taken_cpus:g} CPUs and {room.taken_gpus:g} GPUs of {room.cpus:g} and {room.gpus:g}; use fewer "
            "workers, valid_on=worker, or say --cluster.autoscaling true if the cluster grows on demand"
        )
    return "actor"


class DecodingActor:
    """What the actor does."""

    def __init__(self, tokens: TokenFolder, architecture: Architecture, config: TrainingConfig, device: str) -> None:
        if device == "cpu":
            prepare_cpu(threads=1)
        self.decoder = Decoder(tokens, architecture, config, torch.device(device))

    def score(self, arrays: dict[str, np.ndarray]) -> tuple[dict[str, float], float]:
        """Return the scores of weights, and the seconds that it took."""
        # Ray's arrays cannot be written to, which torch does not know.
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return self.decoder.judge(weights)

    def is_ready(self) -> bool:
        """Return True; an answer says that the actor has found its room, and lives."""
        return True


class Asked(NamedTuple):
    """Weights whose scores are wanted."""

    step: int
    weights: Weights


class ActorValidator:
    """The worker's side of the actor, which it starts and which ends with it. While the actor is busy, the newest
    weights wait for it, and take the place of those that waited before. Training never ends for what becomes of the
    actor: a lost one is started again, and what it cannot score is named in a warning."""

    def __init__(
        self, tokens: TokenFolder, architecture: Architecture, config: TrainingConfig, on_gpu: bool = False
    ) -> None:
        self.settings = (tokens, architecture, config, "cuda" if on_gpu else "cpu")
        self.actor: Any = (
            ray.remote(DecodingActor)
            .options(
                num_cpus=1,
                num_gpus=1 if on_gpu else 0,
                scheduling_strategy="SPREAD",  # not in the workers' placement group, and on another machine
                max_restarts=-1,
                max_task_retries=RETRIES,
                max_concurrency=2,  # it says that it is ready while it decodes
            )
            .remote(*self.settings)
        )
        self.asked_if_ready: tuple[float, Any] | None = None
        """When, and the answer to come."""
        self.running: tuple[Asked, Any] | None = None
        self.waiting: Asked | None = None

    @property
    def awaited(self) -> int | None:
        """Step of the newest weights whose scores are still to come."""
        newest = self.waiting or (self.running and self.running[0])
        return newest.step if newest else None

    def offer(self, step: int, weights: Weights) -> None:
        """Ask for the scores of a step's weights."""
        self.waiting = Asked(step, weights)
        if self.running is None:
            self.begin()

    def poll(self, seconds: float) -> list[Finding]:
        """Return what came since the last call, or comes in so many seconds, which only the end of training waits."""
        found: list[Finding] = []
        while self.running is not None:
            asked, answer = self.running
            if ray.wait([answer], timeout=seconds)[0]:
                found += scored(asked, answer)
                self.begin()
            elif seconds and self.is_nowhere():
                return [*found, *self.decode_here()]
            else:
                break
        return found

    def is_nowhere(self) -> bool:
        """Say whether the actor has not answered for long; asked again and again at the end of training."""
        if self.asked_if_ready is None:
            self.asked_if_ready = time.monotonic(), self.actor.is_ready.remote()
        since, answer = self.asked_if_ready
        if ray.wait([answer], timeout=0)[0]:
            self.asked_if_ready = None
            return False
        return time.monotonic() - since > START_SECONDS

    def begin(self) -> None:
        """Send the actor what waits, if anything does."""
        asked, self.waiting, self.running = self.waiting, None, None
        if asked is not None:
            arrays = {name: weight.numpy() for name, weight in asked.weights.items()}
            self.running = (asked, self.actor.score.remote(arrays))

    def decode_here(self) -> list[Finding]:
        """Return what was asked for last, decoded in this process: the actor has not found room."""
        assert self.running is not None
        asked = self.waiting or self.running[0]
        logger.warning("validation of step %d: its actor finds no place in the cluster; decoded here", asked.step)
        self.running = self.waiting = None
        tokens, architecture, config, device = self.settings
        scores, seconds = Decoder(tokens, architecture, config, torch.device(device)).judge(asked.weights)
        return [Finding(asked.step, scores, asked.weights, seconds)]


def scored(asked: Asked, answer: Any) -> list[Finding]:
    """Return what the actor found of weights; nothing, with a warning, where it failed or was lost each time."""
    from ray.exceptions import RayError

    try:
        scores, seconds = ray.get(answer)
    except RayError as error:
        cause = getattr(error, "cause", None)
        why = f"{type(cause).__name__}: {cause}" if cause else str(error).partition("\n")[0]
        logger.warning("validation of step %d has no scores, and training goes on without: %s", asked.step, why)
        return []
    return [Finding(asked.step, scores, asked.weights, seconds)]
