"""What a worker is asked for from outside while it trains: to save, to end, to make room.

A wish comes in anywhere (a signal, Ray, the driver) and at any time; the workers agree on it once a step, so that
all of them save after the same one. No Ray in here.
"""

from __future__ import annotations

import os
import signal
import threading
from enum import IntEnum

import torch
import torch.distributed as dist

from tfray.training.workers import world_size

GRACE_SECONDS = 25.0
"""How long a step and a checkpoint may take when somebody waits for them: the shortest notice of a cloud is 30 s."""
EXIT_CODE = 128 + signal.SIGTERM


class Wish(IntEnum):
    """From the weakest to the strongest; of several, workers follow the strongest."""

    NOTHING = 0
    SAVE = 1
    """Write a checkpoint and go on: a node will be lost soon."""
    END = 2
    """Write a checkpoint and end: the driver was interrupted, or the workers become more or fewer."""
    MOVE = 3
    """Write a checkpoint and fail, so that Ray starts anew: this process must go."""


class Preempted(Exception):
    """The workers have saved and ended since one of them was asked to go by SIGTERM."""


class Left(Exception):
    """All workers have left a validation, since one of them is to end."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.name)
        self.wish = wish


class Wishes:
    """What this process is asked for; there is one for its training, known to all of its threads."""

    def __init__(self) -> None:
        self.strongest = Wish.NOTHING
        self.lock = threading.RLock()  # a signal may come in the middle of ask()
        self.is_training = False
        self.is_surplus = False
        """True where there are more workers than can share the lanes, and this one has nothing to do."""
        self.ended = threading.Event()

    def ask(self, wish: Wish) -> None:
        """Have something done after the present step."""
        with self.lock:
            self.strongest = max(self.strongest, wish)

    def saved(self) -> None:
        """Note that a wished checkpoint was written."""
        with self.lock:
            if self.strongest == Wish.SAVE:
                self.strongest = Wish.NOTHING

    def begin(self) -> None:
        """Note that training begins here."""
        self.is_training = True

    def end(self) -> None:
        """Note that training is over here, whatever came of it."""
        self.is_training = False
        self.ended.set()

    def end_and_wait(self, seconds: float) -> bool:
        """Have training end with a checkpoint; return whether it did in that time."""
        self.ask(Wish.END)
        return self.ended.wait(seconds)

    def on_sigterm(self, number: int, frame: object) -> None:
        """Make room with a checkpoint; asked a second time, or when nothing is being trained, at once."""
        if self.strongest == Wish.MOVE or not self.is_training:
            os._exit(EXIT_CODE)
        self.ask(Wish.MOVE)
        last_moment = threading.Timer(GRACE_SECONDS, os._exit, (EXIT_CODE,))
        last_moment.daemon = True
        last_moment.start()


WISHES = Wishes()


class Agreement:
    """The strongest wish of all workers, found while a step computes."""

    def __init__(self, device: torch.device) -> None:
        # The training thread does not wait for the sum here: it is there long before the step is over. A worker alone
        # asks no GPU, which would finish the update first.
        is_alone = world_size() == 1
        self.strongest = torch.tensor(float(WISHES.strongest), device="cpu" if is_alone else device)
        self.work = None if is_alone else dist.all_reduce(self.strongest, dist.ReduceOp.MAX, async_op=True)

    def result(self) -> Wish:
        """Return what to do after this step, the same on every worker."""
        if self.work is not None:
            self.work.wait()
        return Wish(int(self.strongest))


def leave_if_wanted(device: torch.device) -> None:
    """Raise Left on every worker, all of which call this together, where one of them is to end."""
    wish = Agreement(device).result()
    if wish >= Wish.END:
        raise Left(wish)
