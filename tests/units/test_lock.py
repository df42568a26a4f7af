"""One job at a place; the dead hold nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tfray import storage
from tfray.errors import InputError
from tfray.units import lock as lock_module
from tfray.units.lock import LOCK, Lock, check_holder, read_owner


def test_the_second_is_told_who_holds_the_place(tmp_path: Path) -> None:
    with Lock(str(tmp_path)), pytest.raises(InputError, match=f"process {os.getpid()}"):
        Lock(str(tmp_path)).take()
    with Lock(str(tmp_path)):
        pass
    assert not (tmp_path / LOCK).exists()


def test_who_works_for_a_holder_is_told_when_the_place_is_anothers(tmp_path: Path) -> None:
    check_holder(str(tmp_path), "token")  # nobody holds it
    with Lock(str(tmp_path)) as lock:
        check_holder(str(tmp_path), lock.token)
        with pytest.raises(InputError, match=f"is worked on by process {os.getpid()}"):
            check_holder(str(tmp_path), "token of one before")


def hold(folder: str) -> None:
    Lock(folder).take()
    os._exit(0)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path),))
    process.start()
    process.join()
    assert (tmp_path / LOCK).exists()
    with Lock(str(tmp_path)) as lock:
        owner = read_owner(lock.path)
        assert owner and owner.pid == os.getpid()


@pytest.mark.parametrize(("age", "is_dead"), [(1, False), (1000, True)])
def test_on_another_machine_silence_means_death(tmp_path: Path, age: float, is_dead: bool) -> None:
    owner = replace(Lock(str(tmp_path)).me(), host="elsewhere", beat=time.time() - age)
    assert owner.is_dead == is_dead


def test_a_heart_beats_and_who_lost_the_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.02)
    with Lock(str(tmp_path)) as lock:
        first = read_owner(lock.path)
        time.sleep(0.3)
        later = read_owner(lock.path)
        assert first and later and later.beat > first.beat
        lock.check()
        thief = replace(lock.me(), token="other", pid=1)
        deadline = time.monotonic() + 60
        while not lock.thief and time.monotonic() < deadline:  # a beat may fall between, and win
            storage.publish_bytes(lock.path, json.dumps(thief.__dict__).encode())
            time.sleep(0.1)
        with pytest.raises(InputError, match="process 1 "):
            lock.check()
    assert (tmp_path / LOCK).exists(), "another's lock is left"
