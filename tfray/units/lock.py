"""One job at a place: a lock file with its owner and a heartbeat.

Locally the lock is made by a call that fails where it exists. An object store has no such call for us:
there the lock is put, and read again a moment later; whose name is in it then has it. A lock whose
owner has died, or has not been heard of for a while, is taken over. Workers look whether the lock is still
their driver's before they write: those that a killed driver has left behind write into no other run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tfray import storage
from tfray.errors import InputError, JobError, StorageFailure

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
SIGN_SECONDS = 15.0  # in which who lives gives a sign of it: three beats
SETTLE_SECONDS = 1.0  # for an object store's last word
LOOK_SECONDS = 1.0  # between two looks at a lock on which something waits
PATIENCE_SECONDS = 30.0  # in which a shared folder shows its workers what its driver has written


@dataclass(frozen=True)
class Owner:
    """Who holds a place."""

    token: str
    host: str
    boot: str
    pid: int
    started: int
    """Of the process, in ticks since the machine's start: tells it apart from a later one with its number. 0 where the
    system does not say."""
    beat: float
    """When it was last heard of, in seconds since 1970."""

    @property
    def name(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """It runs, or ran, where processes of its kind can be looked for: on this machine since its start."""
        return self.started > 0 and (self.host, self.boot) == (socket.gethostname(), boot_id())

    @property
    def is_dead(self) -> bool:
        """It has ended, or has not been heard of for long."""
        if self.is_here:
            return started(self.pid) != self.started
        return time.time() - self.beat > STALE_SECONDS


class Ticket(NamedTuple):
    """Shows a worker that its driver holds the place, as the worker sees it."""

    path: str
    token: str

    def check(self) -> None:
        """Raise what is wrong with the lock where that lasts for half a minute."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (problem := self.problem()) is not None:
            if time.monotonic() > deadline:
                raise problem
            time.sleep(LOOK_SECONDS)

    def problem(self) -> JobError | None:
        """Return what is wrong just now: another one holds the place, it is not seen, or it cannot be read."""
        try:
            owner = read_owner(self.path)
        except StorageFailure as failure:
            return failure
        if owner is None:
            return unseen(self.path)
        return None if owner.token == self.token else held(self.path, owner)


def boot_id() -> str:
    """Return what tells this start of the machine apart from others, and a container's processes from those beside it,
    where the system says so."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> int:
    """Return when a process started, in ticks; 0 where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


class Lock:
    """Holds a folder for this process: `with Lock(folder) as lock`, and `lock.check()` now and then."""

    def __init__(self, folder: str) -> None:
        self.path = storage.join(storage.absolute(folder), LOCK)
        self.token = uuid.uuid4().hex
        self.ended = threading.Event()
        self.heartbeat = threading.Thread(target=self.keep_beating, daemon=True)
        self.thief: Owner | None = None

    def __enter__(self) -> Lock:
        with storage.writing(self.path.rpartition("/")[0]):  # a full disk, too
            self.take()
        self.heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.heartbeat.join()  # a beat under way would bring the lock back
        owner = read_owner(self.path)
        if owner and owner.token == self.token:
            storage.remove(self.path)

    def me(self) -> Owner:
        pid = os.getpid()
        return Owner(self.token, socket.gethostname(), boot_id(), pid, started(pid), time.time())

    @property
    def ticket(self) -> Ticket:
        """What shows workers that this process holds the place."""
        return Ticket(self.path, self.token)

    def take(self) -> None:
        """Take the lock; raises InputError, saying who holds it, where somebody does."""
        owner = read_owner(self.path)
        if owner and not owner.is_here:
            owner = self.outwait(owner)
        elif owner and not owner.is_dead:
            raise held(self.path, owner)
        if owner:
            logger.warning("%s has ended without releasing %s; taking over", owner.name, self.path)
        if storage.is_remote(self.path):
            self.write()
            time.sleep(SETTLE_SECONDS)
        else:
            self.create(owner)
        found = read_owner(self.path)
        if found is None or found.token != self.token:
            raise held(self.path, found)

    def outwait(self, owner: Owner) -> Owner | None:
        """Return an owner on another machine once it is silent for long, none if it lets go; raises if it lives."""
        logger.info("%s holds %s; waiting for a sign of life", owner.name, self.path)
        began = time.monotonic()  # by this clock: the other one may be wrong, and who seems long dead may live
        while time.monotonic() - began < (SIGN_SECONDS if owner.is_dead else STALE_SECONDS):
            time.sleep(LOOK_SECONDS)
            found = read_owner(self.path)
            if found is None:
                return None
            if found != owner:
                raise held(self.path, found)
        return owner

    def create(self, stale: Owner | None) -> None:
        """Make the local lock file unless somebody is faster."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        draft = self.draft()
        try:
            if self.says_nothing() if stale is None else read_owner(self.path) == stale:
                draft.replace(self.path)
                time.sleep(0.2)  # of several that take over, the last one has it
            else:
                self.claim(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)

    def says_nothing(self) -> bool:
        """Say whether the lock file names nobody, as one does whose writer was killed, or its machine lost its power:
        to write it takes no second."""
        for seconds in (0.0, SETTLE_SECONDS):
            time.sleep(seconds)
            if not storage.exists(self.path) or read_owner(self.path):
                return False
        logger.warning("%s names nobody; taking over", self.path)
        return True

    def claim(self, draft: Path) -> None:
        """Put a draft into its place; raises FileExistsError where there is something."""
        try:
            os.link(draft, self.path)
        except FileExistsError:
            raise
        except OSError:  # the file system has no hard links
            with open(self.path, "x") as file:
                file.write(draft.read_text())

    def draft(self) -> Path:
        """Return a new file beside the local lock file, with what that is to say."""
        folder, _, name = self.path.rpartition("/")
        draft = Path(folder, f".{name}.{self.token}")
        draft.write_text(json.dumps(asdict(self.me())))
        return draft

    def write(self) -> None:
        """Write the lock again; a local folder that has gone is not made."""
        if storage.is_remote(self.path):
            storage.publish_bytes(self.path, json.dumps(asdict(self.me())).encode())
        else:
            self.draft().replace(self.path)

    def keep_beating(self) -> None:
        """Say every few seconds that this process lives; stop where the lock is somebody else's."""
        while not self.ended.wait(BEAT_SECONDS):
            try:
                owner = read_owner(self.path)
                if owner and owner.token != self.token:
                    self.thief = owner
                    return
                if not self.ended.is_set():
                    self.write()
            except FileNotFoundError:
                continue  # the folder changes places with another one
            except storage.WRITE_ERRORS as error:
                logger.warning("the heartbeat in %s failed: %s", self.path, error)

    def check(self) -> None:
        """Raise InputError where another job has taken the place over."""
        if self.thief:
            raise held(self.path, self.thief)


def read_owner(path: str) -> Owner | None:
    """Return who holds a lock file, if there is one."""
    try:
        return Owner(**storage.read_json(path)) if storage.exists(path) else None
    except (FileNotFoundError, ValueError, TypeError):  # of half a file
        return None


def unseen(path: str) -> InputError:
    """Return the error of a worker that does not see its driver's lock."""
    return InputError(
        f"out={path.rpartition('/')[0]!r} is another folder on {socket.gethostname()} than where the job was started: "
        f"there is no {LOCK} in it; choose a folder that all machines share, or one in an object store"
    )


def held(path: str, owner: Owner | None) -> InputError:
    """Return the error that says who holds a place."""
    who = f"by {owner.name}, last heard of {time.time() - owner.beat:.0f} s ago" if owner else "by another job"
    return InputError(
        f"out={path.rpartition('/')[0]!r} is worked on {who}; wait for its end, end it, or choose another folder"
    )
