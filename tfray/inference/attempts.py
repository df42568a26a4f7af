"""A row that kills its process: found by halving the unit, and marked.

Whoever works on rows of a unit notes it in a small file first. A note of the same start of the job that is
found at the start of work says that the process died on those rows: Ray starts it anew and hands it the same
unit. After three deaths the unit is halved, and a half that kills is halved again, down to a row that kills
alone, twice. Where the work cannot be cut (a file is read, or written, as a whole), three deaths are its verdict.
The note of an earlier start may be of a process that ended with its job: what was suspected then is tried apart
first, and nothing of it counts.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from tfray import storage
from tfray.errors import InputError

Result = TypeVar("Result")
ATTEMPTS = "_attempts"
DEATHS, DEATHS_ALONE, SEARCHES = 3, 2, 3
GUILTY = f"crashed: the process died {DEATHS_ALONE} times while it worked on this row alone"


@dataclass
class Attempts:
    """What is known of the deaths on one unit; kept in a file."""

    path: str
    start: str = ""
    """Of the job, by which deaths count."""
    trying: list[int] | None = None
    """First row and end of what a process is at work on, or died on."""
    machine: str = ""
    """Of that process."""
    died_on: list[str] = field(default_factory=list)
    """The machine of each process that died on these rows."""
    suspects: list[list[int]] = field(default_factory=list)
    """Ranges of rows in which the guilty ones may be; the last is tried next."""
    searches: int = 0
    guilty: list[int] = field(default_factory=list)

    def carry_out(self, work: Callable[[list[int]], Result], rows: int) -> Result:
        """Return what work makes of all rows that do not kill the process; `guilty` says which do."""
        if self.trying is not None:
            self.died()
        while self.suspects:
            self.attempt(work, self.suspects[-1])
            self.suspects.pop()
            self.died_on = []
        result = self.attempt(work, [0, rows])
        self.end()
        return result

    def carry_out_whole(self, work: Callable[[], Result]) -> Result | None:
        """Return what work makes of a unit that it cannot cut; None where the process has died of it too often."""
        found = self.carry_out(lambda chosen: work() if chosen else None, 1)
        storage.remove(self.path)  # who starts the job again tries again
        return found

    def attempt(self, work: Callable[[list[int]], Result], span: list[int]) -> Result:
        """Return what work makes of a range of rows; the file says that it was begun, until it is over."""
        self.trying, self.machine = span, socket.gethostname()
        self.save()
        try:
            return work([row for row in range(*span) if row not in self.guilty])
        except Exception:
            self.end()  # an error is no death
            raise

    @property
    def deaths(self) -> int:
        """Of processes on these rows, as far as the rows may have been the cause: one death on each other machine may
        have been that machine's end."""
        return len(self.died_on) - len({*self.died_on} - {socket.gethostname()})

    def died(self) -> None:
        """Draw the conclusions from a death on the rows that were tried."""
        assert self.trying is not None
        (start, stop), is_search = self.trying, bool(self.suspects)
        self.trying, self.died_on = None, [*self.died_on, self.machine]
        if stop - start == 1:
            if self.deaths >= (DEATHS_ALONE if is_search else DEATHS):
                self.guilty.append(start)
                self.suspects, self.died_on = self.suspects[:-1], []
        elif is_search or self.deaths >= DEATHS:
            if not is_search:
                self.begin_search()
            middle = (start + stop) // 2
            self.suspects = [*self.suspects[:-1], [middle, stop], [start, middle]]
            self.died_on = []

    def begin_search(self) -> None:
        self.searches += 1
        if self.searches > SEARCHES + len(self.guilty):
            raise InputError(
                f"the rows of {self.path.rpartition('/')[2]!r} kill their process together and none does alone; "
                "lower generation.batch_rows, or raise the memory of an actor"
            )

    def end(self) -> None:
        """Note that nobody is at work on the unit; a unit on which nobody died leaves no file."""
        self.trying, self.died_on = None, []
        if self.guilty:
            self.save()
        else:
            storage.remove(self.path)

    def save(self) -> None:
        values = asdict(self)
        values.pop("path")
        storage.publish_json(self.path, values)


def open_attempts(folder: str, stem: str, step: str, start: str) -> Attempts:
    """Return what is known of earlier attempts of a step at a unit."""
    path = storage.join(folder, f"{ATTEMPTS}/{stem}-{step}.json")
    if not storage.exists(path):
        return Attempts(path, start)
    known = storage.read_json(path)
    if known.get("start") == start:
        return Attempts(path, **known)
    return Attempts(path, start, suspects=[*known["suspects"], *([row, row + 1] for row in known["guilty"])])
