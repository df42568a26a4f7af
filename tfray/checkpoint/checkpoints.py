"""Saving and loading of training state by all workers: copied at once, written in the background, kept by policy."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_by_dcp
from torch.distributed.checkpoint.state_dict_saver import save as save_by_dcp

from tfray import storage
from tfray.checkpoint.group import Group, open_group
from tfray.checkpoint.parts import DTYPES, PartReader, PartWriter
from tfray.checkpoint.pieces import Staged, StagedPlanner, Staging
from tfray.checkpoint.state import (
    STATE,
    Progress,
    Saved,
    begun_checkpoints,
    checkpoint_folder,
    complete_checkpoints,
    newest_whole,
    note_damage,
    read_state,
    step_of,
    verify,
)
from tfray.errors import CheckpointMismatch, JobError, StorageFailure

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run. All workers make one, and call its methods together.

    `keep` newest of every so many steps are kept, and the `keep_best` with the highest score. What an interrupt saved
    in between is kept while it is the newest, or there are fewer.
    """

    def __init__(self, out: str, keep: int, keep_best: int = 0, every: int = 1) -> None:
        self.out, self.keep, self.keep_best, self.every = out, keep, keep_best, every
        self.group = open_group()
        self.staging = Staging()
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.unusable: dict[str, str] = {}
        self.verified: tuple[str, Saved] | None = None
        self.score: float | None = None
        """Of the weights that were loaded, where they were judged."""
        self.waited_seconds = 0.0
        """Time that training stood still for saving."""

    def save(self, progress: Progress, tensors: dict[str, Tensor], score: float | None = None) -> None:
        """Copy the tensors and return; they are written in the background.

        Waits first for the save before, and raises what that one's writing raised. A score is what the newest
        validation found; more is better.
        """
        self.wait()
        started, self.verified = time.monotonic(), None
        staged = self.staging.fill(tensors, self.group)
        self.writing = self.writer.submit(self.write, progress, staged, score)
        self.waited_seconds += time.monotonic() - started

    def wait(self) -> None:
        """Return when the newest save is published; raises what its writing raised."""
        if self.writing is None:
            return
        started, writing, self.writing = time.monotonic(), self.writing, None
        try:
            writing.result()
        finally:
            self.waited_seconds += time.monotonic() - started

    def write(self, progress: Progress, staged: dict[str, Staged], score: float | None) -> None:
        """Write and publish a checkpoint, then clear away what is no longer kept."""
        started = time.monotonic()
        folder = checkpoint_folder(self.out, progress.step)
        silence_dcp()
        try:
            save_by_dcp(
                {},
                storage_writer=PartWriter(folder, progress, score),
                planner=StagedPlanner(staged),
                process_group=self.group.process_group,
                no_dist=self.group.is_alone,
            )
        except CheckpointException as error:
            self.clear(lambda: sweep_folder(folder))
            raise cause(error) from error
        if self.group.rank == 0:
            logger.info("%s written in %.2f s", folder, time.monotonic() - started)
        self.unusable.pop(folder, None)
        self.clear(lambda: self.sweep(folder))

    def clear(self, sweep: Callable[[], None]) -> None:
        """Let the first worker delete; what cannot be deleted is in nobody's way."""
        if self.group.rank == 0:
            try:
                sweep()
            except (OSError, ValueError, StorageFailure) as error:
                logger.warning("old checkpoints of %r cannot be deleted: %s", self.out, error)

    def sweep(self, newest: str) -> None:
        """Delete what is not kept, and what kills have left unfinished; `newest` is published."""
        whole = [folder for folder in complete_checkpoints(self.out) if folder not in self.unusable]
        planned = planned_checkpoints(whole, self.every)
        others = [folder for folder in reversed(whole) if folder not in planned]
        kept = planned[-self.keep :] + others[: max(0, self.keep - len(planned))]
        kept += best_folders(scored_folders(whole), self.keep_best)
        for folder in begun_checkpoints(self.out):
            if folder not in {*kept, newest}:
                storage.remove(storage.join(folder, STATE))  # first, so that no kill leaves half a checkpoint
                storage.remove(folder)
        sweep_folder(newest)

    def newest(self) -> Progress:
        """Return how far the newest whole checkpoint is, all its bytes verified; Progress() where there is none."""
        self.wait()
        self.verified = newest_whole(self.out, self.group, self.unusable)
        return self.verified[1].progress if self.verified else Progress()

    def load(self, tensors: dict[str, Tensor]) -> Progress:
        """Put the newest whole checkpoint into live tensors, replicated or sharded; Progress() where there is none.

        A damaged one is named in a warning and the one before is used. Raises CheckpointMismatch where a tensor
        has another shape, or all checkpoints are damaged.
        """
        self.wait()
        while found := self.verified or newest_whole(self.out, self.group, self.unusable):
            self.verified = None
            folder, saved = found
            check_fits(folder, saved, tensors)
            try:
                read_tensors(folder, saved, tensors, self.group)
            except CheckpointException as error:
                if not isinstance(cause(error), (OSError, ValueError, LookupError, pa.ArrowException)):
                    raise cause(error) from error
                note_damage(self.unusable, folder, str(cause(error)))
            else:
                self.score = saved.score
                return saved.progress
        return Progress()


def planned_checkpoints(folders: list[str], every: int) -> list[str]:
    """Return the checkpoints that an uninterrupted run has too, of every so many steps, and the newest."""
    return [folder for folder in folders[:-1] if step_of(folder) % every == 0] + folders[-1:]


def scored_folders(folders: list[str]) -> list[tuple[str, float | None]]:
    """Return whole checkpoints with their scores, of which only those by the newest one's metric, on its validation
    data, count."""
    states = [read_state(folder) for folder in folders]
    kinds = [(state.progress.best_metric, state.progress.judged_by) for state in states]
    scores = [state.score if kind == kinds[-1] else None for state, kind in zip(states, kinds, strict=True)]
    return list(zip(folders, scores, strict=True))


def best_folders(scored: list[tuple[str, float | None]], count: int) -> list[str]:
    """Return the folders with the highest score, the best first, of equal ones the newest; fewer where there are
    fewer with a score."""
    ranked = sorted(
        ((score, index) for index, (_, score) in enumerate(scored) if score is not None and score == score),
        reverse=True,
    )
    return [scored[index][0] for _, index in ranked[:count]]


def sweep_folder(folder: str) -> None:
    """Delete the files that a folder's state.json does not name; all where there is none."""
    if not storage.exists(storage.join(folder, STATE)):
        storage.remove(folder)
        return
    named = {STATE, *read_state(folder).parts}
    for path in storage.list_files(folder):
        if storage.base_name(path) not in named:
            storage.remove(path)


def check_fits(folder: str, saved: Saved, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointMismatch unless a checkpoint has each tensor in its shape, and none besides."""
    remedy = (
        "train on with the model settings that it was made with, choose another 'out', or say --overwrite to train anew"
    )
    for name, tensor in tensors.items():
        stored = saved.tensors.get(name) or saved.tensors.get(stand_in(name))
        if stored is None:
            raise CheckpointMismatch(f"checkpoint {folder!r} has no {name!r}, which the model has; {remedy}")
        if list(stored.shape) != list(tensor.shape):
            raise CheckpointMismatch(
                f"checkpoint {folder!r} has {name!r} in shape {list(stored.shape)}, the model in "
                f"{list(tensor.shape)}; {remedy}"
            )
    for name in saved.tensors:
        if name not in tensors and not name.startswith(AVERAGE):
            raise CheckpointMismatch(f"checkpoint {folder!r} has {name!r}, which the model has not; {remedy}")


def check_weights(out: str, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointMismatch unless a run's newest checkpoint, if there is one, has a model's weights; no value is
    looked at."""
    for folder in complete_checkpoints(out)[-1:]:
        saved = read_state(folder)
        own = {name: tensor for name, tensor in saved.tensors.items() if name.startswith(WEIGHT)}
        check_fits(folder, replace(saved, tensors=own), {WEIGHT + name: tensor for name, tensor in weights.items()})


WEIGHT, AVERAGE = "weight.", "average."


def stand_in(name: str) -> str:
    """Return what is loaded where a tensor was not saved: an average that is new begins at the weights."""
    return WEIGHT + name.removeprefix(AVERAGE) if name.startswith(AVERAGE) else name


def read_tensors(folder: str, saved: Saved, tensors: dict[str, Tensor], group: Group) -> None:
    """Put a checkpoint into live tensors."""
    silence_dcp()
    load_by_dcp(
        {name: tensor.detach() for name, tensor in tensors.items() if name in saved.tensors},
        storage_reader=PartReader(folder, saved),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=group.process_group,
        no_dist=group.is_alone,
    )
    for name, tensor in tensors.items():
        if name not in saved.tensors:
            tensor.detach().copy_(tensors[stand_in(name)].detach())


def read_weights(folder: str) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, averaged if it has an average, by name; needs no process group.

    Raises CheckpointMismatch where it is damaged.
    """
    saved = verify(folder, Group())
    if isinstance(saved, str):
        raise CheckpointMismatch(f"checkpoint {folder!r} is damaged: {saved}; use another one")
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in saved.tensors) else WEIGHT
    tensors = {
        name: torch.empty(list(stored.shape), dtype=DTYPES[stored.dtype])
        for name, stored in saved.tensors.items()
        if name.startswith(prefix)
    }
    read_tensors(folder, saved, tensors, Group())
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def cause(error: CheckpointException) -> BaseException:
    """Return what people can act on among what the workers raised, or else what one of them raised."""
    raised = [wrapped[0] for wrapped in error.failures.values()]
    return next((each for each in raised if isinstance(each, JobError)), raised[0] if raised else error)


def silence_dcp() -> None:
    """Keep DCP from warning people that one worker saves alone."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
