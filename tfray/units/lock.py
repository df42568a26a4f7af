"""One job at a place: a lock file with its owner and a heartbeat.

Locally the lock is made by a call that fails where it exists. An object store has no such call for us:
there the lock is put, and read again a moment later; whose name is in it then has it. A lock whose
owner has died, or has not been heard of for a while, is taken over.
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

from tfray import storage
from tfray.errors import InputError

logger = logging.getLogger(__name__)

LOCK = "_lock.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
SETTLE_SECONDS = 1.0  # for an object store's last word


@dataclass(frozen=True)
class Owner:
    """Who holds a place."""

    token: str
    host: str
    boot: str
    pid: int
    started: int
    """Of the process, in ticks since the machine's start: tells it apart from a later one with its number."""
    beat: float
    """When it was last heard of, in seconds since 1970."""

    @property
    def name(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """It has ended, or has not been heard of for long."""
        if (self.host, self.boot) == (socket.gethostname(), boot_id()):
            return started(self.pid) != self.started
        return time.time() - self.beat > STALE_SECONDS


def boot_id() -> str:
    """Return what tells this start of the machine apart from others, where the system says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
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
        self.thief: Owner | None = None

    def __enter__(self) -> Lock:
        self.take()
        threading.Thread(target=self.keep_beating, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        owner = read_owner(self.path)
        if owner and owner.token == self.token:
            storage.remove(self.path)

    def me(self) -> Owner:
        pid = os.getpid()
        return Owner(self.token, socket.gethostname(), boot_id(), pid, started(pid), time.time())

    def take(self) -> None:
        """Take the lock; raises InputError, saying who holds it, where somebody does."""
        owner = read_owner(self.path)
        if owner and not owner.is_dead:
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

    def create(self, stale: Owner | None) -> None:
        """Make the local lock file unless somebody is faster."""
        aside = f"{self.path}.{self.token}"
        Path(aside).parent.mkdir(parents=True, exist_ok=True)
        Path(aside).write_text(json.dumps(asdict(self.me())))
        try:
            if stale and read_owner(self.path) == stale:
                os.replace(aside, self.path)
                time.sleep(0.2)  # of several that take over, the last one has it
            else:
                os.link(aside, self.path)
        except FileExistsError:
            pass
        finally:
            Path(aside).unlink(missing_ok=True)

    def write(self) -> None:
        storage.publish_bytes(self.path, json.dumps(asdict(self.me())).encode())

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
            except OSError as error:
                logger.warning("the heartbeat in %s failed: %s", self.path, error)

    def check(self) -> None:
        """Raise InputError where another job has taken the place over."""
        if self.thief:
            raise held(self.path, self.thief)


def check_holder(folder: str, token: str) -> None:
    """Raise InputError where a folder has come to be held by another than the lock with this token."""
    path = storage.join(storage.absolute(folder), LOCK)
    owner = read_owner(path)
    if owner and owner.token != token:
        raise held(path, owner)


def read_owner(path: str) -> Owner | None:
    """Return who holds a lock file, if there is one."""
    try:
        return Owner(**storage.read_json(path)) if storage.exists(path) else None
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def held(path: str, owner: Owner | None) -> InputError:
    """Return the error that says who holds a place."""
    who = f"by {owner.name}, last heard of {time.time() - owner.beat:.0f} s ago" if owner else "by another job"
    return InputError(
        f"out={path.rpartition('/')[0]!r} is worked on {who}; wait for its end, end it, or choose another folder"
    )
