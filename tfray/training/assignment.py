"""What the driver hands the workers."""

from __future__ import annotations

from typing import NamedTuple

from tfray.batches.count import EpochCount
from tfray.config import TrainJob
from tfray.training.bell import Bell
from tfray.units.lock import Ticket


class Assignment(NamedTuple):
    """The same for all of them."""

    job: TrainJob
    epoch: EpochCount
    """About what an epoch has."""
    validates_beside: bool
    """True where an actor of its own decodes validation sources."""
    trace_pause: float | None
    """Where a test wants to know what was trained on: the seconds by which each step is slowed."""
    bell: Bell
    """By which the driver has the workers end."""
    ticket: Ticket
    """By which the workers see that their driver holds the place."""
