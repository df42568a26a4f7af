"""What Ray runs on each worker that it starts."""

from __future__ import annotations

import logging
import threading
import traceback

import ray.exceptions
import ray.train

from tfray.checkpoint.refusal import FULL
from tfray.config.batches import usable_workers
from tfray.errors import InputError, JobError
from tfray.training.assignment import Assignment
from tfray.training.bell import Bell
from tfray.training.group import WorkerFailed
from tfray.training.log import WarningEvents
from tfray.training.stop import WISHES, Preempted, Wish
from tfray.training.worker import Worker


def train_worker(config: dict) -> None:
    """Train to the end; `config` holds the assignment. A worker that finds no lanes to share returns at once."""
    assignment: Assignment = config["assignment"]
    context = ray.train.get_context()
    started = context.get_world_size()
    workers = usable_workers(started, assignment.job.batches.lanes)
    if context.get_world_rank() >= workers:
        WISHES.is_surplus = True
        return
    WISHES.begin()
    threading.Thread(target=listen, args=(assignment.bell,), daemon=True).start()
    warnings = WarningEvents(assignment.job.out)
    if context.get_world_rank() == 0:
        logging.getLogger("tfray").addHandler(warnings)
    try:
        Worker(assignment, context.get_world_rank(), workers, started).run()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"training stopped, since there is no room left for {assignment.job.out!r} ({error}); its last checkpoint "
            "is whole: make room, and start the same command again"
        ) from error
    except (JobError, Preempted, ray.exceptions.RayError):
        raise
    except Exception as error:
        raise WorkerFailed(traceback.format_exc()) from error  # Ray brings errors to the driver without it
    finally:
        WISHES.end()
        logging.getLogger("tfray").removeHandler(warnings)


def listen(bell: Bell) -> None:
    """End training when the driver says so."""
    try:
        bell.wait()
        WISHES.ask(Wish.END)
    except ray.exceptions.RayError:
        return  # the driver is gone, and Ray ends its workers
