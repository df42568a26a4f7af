"""A row that kills its process is found and marked, whatever else is in its unit."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.inference.conftest import WORDS, Death, Run, make_job
from tfray.errors import InputError
from tfray.generation.engine import Batch
from tfray.inference import attempts as attempts_module
from tfray.inference.answer import AnswerUnit
from tfray.inference.attempts import ATTEMPTS, GUILTY, open_attempts
from tfray.inference.encode import DIED, EncodeUnit
from tfray.inference.handover import Encoded
from tfray.inference.summary import format_result
from tfray.inference.write import WriteUnit
from tfray.storage import read_json
from tfray.units.plan import Unit

START = "the first start"


def survive(folder: str, rows: int, killers: set[int]) -> tuple[list[int], list[int], int]:
    """Return the rows that are done, those that are marked, and the deaths on the way."""

    def work(chosen: list[int]) -> list[int]:
        if killers & set(chosen):
            raise Death
        return chosen

    for deaths in range(1000):
        attempts = open_attempts(folder, "unit", "answer", START)
        try:
            return attempts.carry_out(work, rows), attempts.guilty, deaths
        except Death:
            continue
    raise AssertionError("no end")


@given(rows=st.integers(1, 200), data=st.data())
def test_exactly_the_rows_that_kill_are_marked(
    tmp_path_factory: pytest.TempPathFactory, rows: int, data: st.DataObject
) -> None:
    killers = data.draw(st.sets(st.integers(0, rows - 1), max_size=3))
    folder = str(tmp_path_factory.mktemp("out"))
    done, guilty, deaths = survive(folder, rows, killers)
    assert set(guilty) == killers
    assert done == [row for row in range(rows) if row not in killers]
    assert deaths <= 3 + len(killers) * (rows.bit_length() + 3) + 3
    assert killers or not Path(folder, ATTEMPTS, "unit-answer.json").exists()


def test_deaths_that_no_row_explains_mark_no_row(tmp_path: Path) -> None:
    deaths = iter([True, True, True, False, True])

    def work(rows: list[int]) -> list[int]:
        if next(deaths, False):
            raise Death
        return rows

    while True:
        attempts = open_attempts(str(tmp_path), "unit", "answer", START)
        try:
            assert attempts.carry_out(work, 64) == list(range(64))
            break
        except Death:
            continue
    assert attempts.guilty == []


def test_a_job_that_is_stopped_again_and_again_marks_no_row_and_no_unit(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def die(rows: object = None) -> None:
        raise Death

    for number in range(9):
        with pytest.raises(Death):
            open_attempts(folder, "unit", "read", str(number)).carry_out_whole(die)
        with pytest.raises(Death):
            open_attempts(folder, "unit", "answer", str(number)).carry_out(die, 8)
    assert open_attempts(folder, "unit", "read", "last").carry_out_whole(lambda: "read") == "read"
    attempts = open_attempts(folder, "unit", "answer", "last")
    assert attempts.carry_out(lambda rows: rows, 8) == list(range(8)) and attempts.guilty == []


def test_machines_that_are_lost_mark_no_unit_and_one_machine_that_loses_its_processes_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_on(machine: str) -> str | None:
        monkeypatch.setattr(attempts_module.socket, "gethostname", lambda: machine)
        with contextlib.suppress(Death):
            return open_attempts(str(tmp_path), "unit", "read", START).carry_out_whole(
                lambda: (_ for _ in ()).throw(Death())
            )
        return "died"

    for machine in "abcdef":
        assert die_on(machine) == "died"
    assert [die_on("f") for _ in range(3)] == ["died", "died", None]


def test_what_an_earlier_start_suspected_is_tried_apart_and_proved_again(tmp_path: Path) -> None:
    deaths: list[int] = []

    def work(rows: list[int]) -> list[int]:
        if 5 in rows:
            deaths.append(len(rows))
            raise Death
        return rows

    def carry_out(start: str, most: int) -> list[int]:
        for _ in range(most):
            attempts = open_attempts(str(tmp_path), "unit", "answer", start)
            try:
                attempts.carry_out(work, 64)
                return attempts.guilty
            except Death:
                continue
        return []

    assert carry_out("first", 7) == [], "stopped while it searches"
    deaths.clear()
    assert carry_out("second", 30) == [5]
    assert max(deaths) < 64, "the unit as a whole kills nobody again"
    deaths.clear()
    assert carry_out("third", 30) == [5] and deaths == [1, 1]


def test_an_error_is_no_death(tmp_path: Path) -> None:
    def fail(rows: list[int]) -> None:
        raise InputError("changed")

    for _ in range(9):
        with pytest.raises(InputError):
            open_attempts(str(tmp_path), "unit", "read", START).carry_out(fail, 1)
        with pytest.raises(InputError):
            open_attempts(str(tmp_path), "unit", "write", START).carry_out_whole(partial(fail, []))
    assert not list((tmp_path / ATTEMPTS).iterdir())


def test_rows_that_kill_only_together_end_the_job_with_a_word(tmp_path: Path) -> None:
    def work(rows: list[int]) -> list[int]:
        if len(rows) > 5:
            raise Death
        return rows

    with pytest.raises(InputError, match="batch_rows"):
        while True:
            try:
                open_attempts(str(tmp_path), "unit", "answer", START).carry_out(work, 10)
            except Death:
                continue


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("odd")])
def test_a_row_that_fails_costs_only_itself(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pq.write_table(pa.table({"source": [WORDS[: row + 3] for row in range(20)]}), tmp_path / "a.parquet")
    job = make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out")
    expected = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "calm")).to_pylist()
    real, alone = AnswerUnit.generate, []

    def fail(self: AnswerUnit, encoded: Encoded, rows: list[int]) -> list:
        if any(encoded.unit.first_row + row == 13 for row in rows):
            alone.append(len(rows) == 1)
            raise error
        return real(self, encoded, rows)

    monkeypatch.setattr(AnswerUnit, "generate", fail)
    rows = run(job, unit_rows=20).to_pylist()
    kind = "out_of_memory" if isinstance(error, MemoryError) else "failed"
    assert rows[13]["error"].startswith(kind) and rows[13]["prediction"] is None
    assert alone.count(True) == 2, "tried once more alone before it is marked"
    assert rows[:13] + rows[14:] == expected[:13] + expected[14:]


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view()], ids=str)
@pytest.mark.parametrize("step", ["encode", "answer"])
def test_a_row_that_kills_the_process_is_marked_and_the_others_are_as_ever(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: pa.DataType
) -> None:
    texts = [f"{WORDS} {'five ' * row}" for row in range(20)]
    pq.write_table(pa.table({"source": pa.array(texts, kind)}), tmp_path / "a.parquet")
    expected = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "calm")).to_pylist()
    generate, encode = AnswerUnit.generate, EncodeUnit.encode

    def die_answering(self: AnswerUnit, encoded: Encoded, rows: list[int]) -> list:
        if any(encoded.unit.first_row + row == 13 for row in rows):
            raise Death
        return generate(self, encoded, rows)

    def die_encoding(self: EncodeUnit, texts_: list[str]) -> list:
        if texts[13].strip() in map(str.strip, texts_):
            raise Death
        return encode(self, texts_)

    if step == "answer":
        monkeypatch.setattr(AnswerUnit, "generate", die_answering)
    else:
        monkeypatch.setattr(EncodeUnit, "encode", die_encoding)
    rows = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"), unit_rows=20).to_pylist()
    assert rows[13]["error"] == GUILTY and rows[13]["source"] == texts[13]
    assert rows[:13] + rows[14:] == expected[:13] + expected[14:]
    assert not (tmp_path / "out" / ATTEMPTS).exists()


def test_a_file_that_kills_whoever_reads_it_costs_its_own_rows(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"source": ["one", "two"]}), tmp_path / f"{name}.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    expected = run(make_job(model_folder, files, tmp_path / "calm")).to_pylist()
    real = EncodeUnit.read

    def die(self: EncodeUnit, unit: Unit) -> tuple:
        if unit.path.endswith("a.parquet"):
            raise Death
        return real(self, unit)

    monkeypatch.setattr(EncodeUnit, "read", die)
    rows = run(make_job(model_folder, files, tmp_path / "out"), unit_rows=20).to_pylist()
    assert [row["error"] for row in rows[:2]] == [f"damaged_file: {DIED}"] * 2
    assert rows[2:] == expected[2:]


def test_a_unit_that_kills_whoever_writes_it_ends_the_job_by_its_name(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"source": ["one", "two"]}), tmp_path / "a.parquet")
    job = make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"wrote .*a\.parquet', 2 rows from row 0"):
        patch.setattr(WriteUnit, "table", lambda *rest: (_ for _ in ()).throw(Death()))
        run(job)
    assert len(run(job)) == 2, "started again it is tried again"


def test_shortages_of_memory_cost_no_row_and_are_counted(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"source": [WORDS[: row + 3] for row in range(20)]}), tmp_path / "a.parquet")
    expected = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "calm"))
    assert "memory ran out" not in format_result(str(tmp_path / "calm"))
    step = Batch.step

    def short(self: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.board.rows > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(Batch, "step", short)
    assert run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"), unit_rows=20).equals(expected)
    assert read_json(str(tmp_path / "out" / "_summary.json"))["memory_shortages"] == 2  # 20, 10, 5
    assert "memory ran out 2 times" in format_result(str(tmp_path / "out"))
