"""One job at a place; the dead hold nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tfray import storage
from tfray.errors import InputError, StorageFailure
from tfray.units import lock as lock_module
from tfray.units.lock import LOCK, Lock, Owner, read_owner


def test_the_second_is_told_who_holds_the_place(tmp_path: Path) -> None:
    with Lock(str(tmp_path)), pytest.raises(InputError, match=f"process {os.getpid()}"):
        Lock(str(tmp_path)).take()
    with Lock(str(tmp_path)):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_disk_that_is_full_already_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageFailure, match=r"cannot be written: .*No space left on device; make room"):
        Lock(str(tmp_path)).__enter__()


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


def test_where_the_system_tells_nothing_of_processes_silence_means_death_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "started", lambda pid: 0)
    monkeypatch.setattr(lock_module, "SIGN_SECONDS", 0.0)
    own = Lock(str(tmp_path))
    silent = replace(own.me(), token="other", beat=time.time() - 1000)
    storage.publish_bytes(own.path, json.dumps(silent.__dict__).encode())
    own.take()
    found = read_owner(own.path)
    assert found and found.token == own.token and not found.is_dead


def test_on_a_file_system_without_hard_links_one_alone_has_the_place_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Lock(str(tmp_path)) as lock:
        late = Lock(str(tmp_path))
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            late.take()
        late.create(None)  # as one that looked before there was a lock
        found = read_owner(lock.path)
        assert found and found.token == lock.token
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("sign", ["none", "beats", "leaves"])
def test_an_owner_on_another_machine_is_waited_for_until_it_is_silent_or_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr(lock_module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lock_module, "LOOK_SECONDS", 0.02)
    own = Lock(str(tmp_path))
    elsewhere = replace(own.me(), host="elsewhere", token="other", beat=time.time() + 3600)  # and its clock is wrong

    def write(owner: Owner) -> None:
        storage.publish_bytes(own.path, json.dumps(owner.__dict__).encode())

    def give_sign() -> None:
        time.sleep(0.2)
        write(replace(elsewhere, beat=elsewhere.beat + 1)) if sign == "beats" else storage.remove(own.path)

    write(elsewhere)
    other = threading.Thread(target=give_sign)
    if sign != "none":
        other.start()
    if sign == "beats":
        with pytest.raises(InputError, match=r"worked on by process .* on elsewhere"):
            own.take()
    else:
        own.take()
        found = read_owner(own.path)
        assert found and found.token == own.token
    if sign != "none":
        other.join()


def test_an_owner_whose_clock_is_slow_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "LOOK_SECONDS", 0.02)
    own = Lock(str(tmp_path))
    slow = replace(own.me(), host="elsewhere", token="other", beat=time.time() - 3600)
    storage.publish_bytes(own.path, json.dumps(slow.__dict__).encode())
    beaten = json.dumps(replace(slow, beat=slow.beat + 5).__dict__).encode()
    beat = threading.Timer(0.3, storage.publish_bytes, (own.path, beaten))
    beat.start()
    with pytest.raises(InputError, match=r"worked on by process .* on elsewhere"):
        own.take()
    beat.join()


@pytest.mark.parametrize("content", [b"", b'{"token": "ab', b"\xff\xfe", b"\0\0\0", b"[]"])
def test_half_a_lock_as_a_loss_of_power_leaves_it_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lock_module, "SETTLE_SECONDS", 0.05)
    (tmp_path / LOCK).write_bytes(content)
    with Lock(str(tmp_path)) as lock:
        owner = read_owner(lock.path)
        assert owner and owner.token == lock.token
    assert list(tmp_path.iterdir()) == []


def test_a_heart_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.02)
    with Lock(str(tmp_path / "out")):
        (tmp_path / "out").rename(tmp_path / "away")
        time.sleep(0.3)
        assert not (tmp_path / "out").exists()


def test_a_worker_sees_whether_it_writes_where_its_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.0)
    with Lock(str(tmp_path)) as lock:
        lock.ticket.check()
        with pytest.raises(InputError, match="another folder on"):
            lock.ticket._replace(path=str(tmp_path / "own disk" / LOCK)).check()
        with pytest.raises(InputError, match="is worked on by process"):
            lock.ticket._replace(token="of a driver that was killed").check()


def test_a_beat_under_way_does_not_bring_back_a_lock_that_was_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.01)
    beats, write = threading.Event(), Lock.write

    def slow(lock: Lock) -> None:
        beats.set()
        time.sleep(0.3)
        write(lock)

    monkeypatch.setattr(Lock, "write", slow)
    with Lock(str(tmp_path)):
        assert beats.wait(30)
    time.sleep(0.5)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_cannot_be_read_for_a_moment_stops_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOOK_SECONDS", 0.01)
    failures = [StorageFailure("the network is down")] * 3

    def read(path: str) -> Owner | None:
        if failures:
            raise failures.pop()
        return read_owner(path)

    with Lock(str(tmp_path)) as lock:
        monkeypatch.setattr(lock_module, "read_owner", read)
        lock.ticket.check()
        assert not failures
        monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.0)
        failures += [StorageFailure("the network is down")]
        with pytest.raises(StorageFailure, match="the network is down"):
            lock.ticket.check()
