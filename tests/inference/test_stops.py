"""A replacement that is stopped at any moment ends, started again, as the new run or as the old one: never as both."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from tests.inference.conftest import Run, make_job
from tfray import storage
from tfray.config import PredictJob
from tfray.errors import CheckpointMismatch, InputError
from tfray.inference.attempts import ATTEMPTS
from tfray.inference.handover import Answered
from tfray.inference.write import WriteUnit
from tfray.storage import publishing
from tfray.units import lock, place

ROWS = ["one", "two", "three", "four", "five"]


class Stopped(BaseException):
    """Stands for the end of the process: nothing that it would have done afterwards happens."""


class Life:
    """Lets this process die at the n-th operation that changes what is stored, and be another one afterwards."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.lives, self.left = itertools.count(1), 10**9
        self.number = next(self.lives)
        for name in ("remove", "rename", "copy"):
            self.count(patch, storage, name)
        self.count(patch, publishing.publish, "put")
        self.count(patch, place, "exchange")
        patch.setattr(lock, "started", lambda pid: self.number)
        patch.setattr(lock.Lock, "draft", self.alive(lock.Lock.draft))
        patch.setattr(lock, "SETTLE_SECONDS", 0.0)
        patch.setattr(lock, "BEAT_SECONDS", 3600.0)  # a beat would count as an operation, on a slow machine alone
        patch.setattr(publishing.os, "fsync", lambda file: None)  # a process dies here, and no machine

    def count(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            # The notes on a unit's attempts say nothing of what is done: a stop between them is like one before.
            if self.left < 0 or ATTEMPTS not in str(getattr(arguments[0], "final", arguments[0])):
                self.left -= 1
            if self.left == -1 and name == "remove":
                delete_some(arguments[0], real)
            if self.left < 0:
                raise Stopped
            return real(*arguments)

        patch.setattr(owner, name, counted)

    def alive(self, real: Callable) -> Callable:
        """Return a function that the dead do not carry out."""

        def guarded(*arguments: Any) -> Any:
            if self.left < 0:
                raise Stopped
            return real(*arguments)

        return guarded

    def live(self, operations: int, work: Callable[[], object]) -> bool:
        """Return whether work came to its end within so many operations; who comes next is another process."""
        self.left = operations
        try:
            work()
            return True
        except Stopped:
            return False
        finally:
            self.left, self.number = 10**9, next(self.lives)


def delete_some(path: str, remove: Callable[[str], None]) -> None:
    """Delete a part of a folder, in an order that nobody has chosen, as a deletion does that is stopped."""
    fs, inner = storage.filesystem(path)
    if fs.get_file_info(inner).type == pyarrow.fs.FileType.Directory:
        infos = fs.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
        names = sorted(info.path[len(inner) + 1 :] for info in infos if info.is_file)
        chance = random.Random(str(names))
        for name in chance.sample(names, chance.randrange(len(names) + 1)):
            remove(storage.join(path, name))


def rows_of(out: str) -> list[tuple]:
    """Return source and row number, where there is one, of everything in an output."""
    found = []
    for path in storage.list_files(out):
        if storage.base_name(path).startswith("part-"):
            with storage.open_input(path) as file:
                found += [(row["source"], row.get("row")) for row in pq.read_table(file).to_pylist()]
    return found


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield a place on a file system that can exchange folders, on one that cannot, or in an object store."""
    if request.param == "objects":
        yield request.getfixturevalue("s3").place("bucket", "deep")
        return
    if request.param == "renames":
        monkeypatch.setattr(place, "exchange", lambda one, other: False)
    yield str(tmp_path / "deep")


def restore(saved: str, deep: str) -> None:
    """Put a place back to what was saved."""
    storage.remove(deep)
    if storage.is_remote(deep):
        fs, inner = storage.filesystem(deep)
        pyarrow.fs.copy_files(saved, inner, destination_filesystem=fs)
    else:
        shutil.copytree(saved, deep)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("places", "meanwhile"),
    [("exchange", False), ("exchange", True), ("renames", False), ("renames", True), ("objects", True)],
    indirect=["places"],  # objects take minutes: there the old command always comes in between
)
def test_a_replacement_stopped_at_any_operation_is_finished_by_the_same_command_and_never_mixed(
    run: Run, model_folder: str, tmp_path: Path, places: str, meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"source": ROWS}), tmp_path / "a.parquet")
    out, saved = storage.join(places, "out"), str(tmp_path / "saved")
    old = make_job(model_folder, tmp_path / "a.parquet", out)
    new = make_job(model_folder, tmp_path / "a.parquet", out, mode="overwrite", provenance=True)
    old_rows, new_rows = [(text, None) for text in ROWS], [(text, row) for row, text in enumerate(ROWS)]
    monkeypatch.setattr("tests.inference.conftest.read_output", lambda place: None)

    def carry_out(job: PredictJob, unit_rows: int) -> Callable[[], object]:
        return lambda: run(job, unit_rows=unit_rows)

    carry_out(old, 2)()  # in three files, the new run in two: what is left over must go
    fs, inner = storage.filesystem(places)
    pyarrow.fs.copy_files(inner, saved, source_filesystem=fs)
    life = Life(monkeypatch)
    for operations in itertools.count(step=2 if storage.is_remote(places) else 1):
        restore(saved, places)
        if life.live(operations, carry_out(new, 3)):
            break
        if meanwhile:
            try:
                run(old, unit_rows=2)
                assert rows_of(out) == old_rows, f"stopped at {operations}"
            except CheckpointMismatch:  # what was begun is finished: it is the new run by now
                assert rows_of(out) == new_rows, f"stopped at {operations}"
            assert storage.exists(storage.join(out, "_SUCCESS"))
        run(new, unit_rows=3)
        assert rows_of(out) == new_rows, f"stopped at {operations}"
        assert storage.exists(storage.join(out, "_SUCCESS"))
        left = [name for name in storage.list_folders(places) if storage.base_name(name).startswith(".")]
        assert not left, f"stopped at {operations}"
    assert operations > 15 and rows_of(out) == new_rows


def test_an_addition_stopped_at_any_operation_is_finished_by_the_same_command(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, texts in (("a", ROWS), ("b", ["six"])):
        pq.write_table(pa.table({"source": texts}), tmp_path / f"{name}.parquet")
    deep, saved = str(tmp_path / "deep"), str(tmp_path / "saved")
    run(make_job(model_folder, tmp_path / "a.parquet", f"{deep}/out"), unit_rows=2)
    shutil.copytree(deep, saved)
    job = make_job(model_folder, tmp_path / "b.parquet", f"{deep}/out", mode="append")
    life = Life(monkeypatch)
    for operations in itertools.count():
        restore(saved, deep)
        if life.live(operations, lambda: run(job)):
            break
        assert run(job)["source"].to_pylist() == [*ROWS, "six"], f"stopped at {operations}"
        assert (tmp_path / "deep" / "out" / "_SUCCESS").exists()
    assert operations > 10


def test_a_job_stopped_at_any_operation_and_added_to_leaves_its_settings_and_one_plan(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, texts in (("a", ROWS[:2]), ("b", ["six"])):
        pq.write_table(pa.table({"source": texts}), tmp_path / f"{name}.parquet")
    out = tmp_path / "out"
    job = make_job(model_folder, tmp_path / "a.parquet", out)
    more = make_job(model_folder, tmp_path / "b.parquet", out, mode="append")
    life = Life(monkeypatch)
    for operations in itertools.count():
        storage.remove(str(out))
        if life.live(operations, lambda: run(job)):
            break
        run(job)
        assert str(tmp_path / "a.parquet") in (out / "_config.yaml").read_text(), f"stopped at {operations}"
    shutil.copytree(out, tmp_path / "saved")
    for operations in itertools.count():
        restore(str(tmp_path / "saved"), str(out))
        is_whole = life.live(operations, lambda: run(more))
        run(more)
        assert str(tmp_path / "b.parquet") in (out / "_config.yaml").read_text(), f"stopped at {operations}"
        assert [path.name for path in out.glob("_plan*")] == [storage.read_json(str(out / "_manifest.json"))["plan"]]
        if is_whole:
            break


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_place_stays_taken_while_what_was_there_is_deleted(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    pq.write_table(pa.table({"source": ROWS}), tmp_path / "a.parquet")
    out, discard, looks = str(tmp_path / "out"), place.discard, []
    run(make_job(model_folder, tmp_path / "a.parquet", out))
    if not exchanges:
        monkeypatch.setattr(place, "exchange", lambda one, other: False)

    def look(folder: str) -> None:
        with pytest.raises(InputError, match="is worked on by process"):
            lock.Lock(out).take()
        looks.append(folder)
        discard(folder)

    monkeypatch.setattr(place, "discard", look)
    run(make_job(model_folder, tmp_path / "a.parquet", out, mode="overwrite", provenance=True))
    assert len(looks) > 1 and not (tmp_path / "out" / lock.LOCK).exists()


def test_a_clock_that_is_set_back_makes_no_unit_shorter(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"source": ROWS}), tmp_path / "a.parquet")
    now, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * next(looks))
    run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"))
    seconds = [storage.read_json(str(path))["seconds"] for path in (tmp_path / "out" / "_units").iterdir()]
    assert seconds and all(0 <= found < 600 for found in seconds)


@pytest.mark.parametrize("is_fenced", [True, False])
def test_a_worker_that_a_killed_run_has_left_behind_writes_into_no_other_run(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fenced: bool
) -> None:
    """Not even where it looked at the lock a moment too early."""
    pq.write_table(pa.table({"source": ROWS}), tmp_path / "a.parquet")
    life, out = Life(monkeypatch), tmp_path / "out"
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    other = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "other", beam_size=3), unit_rows=2)
    run(make_job(model_folder, tmp_path / "a.parquet", out), unit_rows=2)
    write, left_behind = WriteUnit.__call__, []

    def be_killed(self: WriteUnit, answered: Answered) -> dict:
        left_behind.append((self, answered))
        raise Stopped

    def overtaken(self: WriteUnit, answered: Answered) -> dict:
        record = write(self, answered)
        if left_behind:
            zombie = left_behind.pop()
            with pytest.raises(InputError, match="is worked on by") if is_fenced else contextlib.nullcontext():
                write(*zombie)
        return record

    settings = {"mode": "overwrite", "unit_rows": 2}
    with monkeypatch.context() as patch:
        patch.setattr(WriteUnit, "__call__", be_killed)
        killed = make_job(model_folder, tmp_path / "a.parquet", out, beam_size=4, **settings)
        assert not life.live(10**9, lambda: run(killed, unit_rows=2))
    with monkeypatch.context() as patch:
        patch.setattr(WriteUnit, "__call__", overtaken)
        if not is_fenced:
            patch.setattr(lock.Ticket, "check", lambda self: None)
        rows = run(make_job(model_folder, tmp_path / "a.parquet", out, beam_size=3, **settings), unit_rows=2)
    assert not left_behind and rows.equals(other)
    assert len(list((out / "_units").iterdir())) == 3
