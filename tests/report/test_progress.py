"""Progress in a job's log and on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from tfray.report import progress
from tfray.report.progress import LOG_EVERY_SECONDS, Progress


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().err


def test_a_log_gets_the_first_and_the_last_state(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("predict", 100, "rows") as shown:
        for _ in range(100):
            shown.update(1)
    first, last = log().splitlines()
    assert first.startswith("predict: 0/100 rows (0%)")
    assert last.startswith("predict: 100/100 rows (100%)")


def test_a_log_gets_one_line_an_interval_at_most(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("predict", 1000, "rows") as shown:
        for _ in range(1000):  # 100 seconds
            clock.now += 0.1
            shown.update(1)
    between = len(log().splitlines()) - 2
    assert 8 <= between <= 100 / LOG_EVERY_SECONDS


def test_a_line_says_count_total_rate_times_and_postfix(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("predict", 2000, "rows") as shown:
        clock.now += 20
        shown.update(500, errors=3, loss=3.21987)
    assert log().splitlines()[-1] == (
        "predict: 500/2000 rows (25%), 25.00 rows/s, 00:20 elapsed, 01:00 left, errors=3, loss=3.22"
    )


def test_the_time_left_follows_from_a_rate_that_is_given(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("predict", 2000, "rows") as shown:
        clock.now += 20
        shown.update(500, 50.0, errors=3)
    assert log().splitlines()[-1] == ("predict: 500/2000 rows (25%), 50.00 rows/s, 00:20 elapsed, 00:30 left, errors=3")


def test_without_a_total_there_is_no_time_left(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("read", None, "rows") as shown:
        clock.now += 20
        shown.update(500)
    last = log().splitlines()[-1]
    assert last == "read: 500 rows, 25.00 rows/s, 00:20 elapsed"


def test_the_postfix_stays_until_another_one(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("train", 3, "steps") as shown:
        shown.update(1, loss=5.0)
        shown.update(1)
    assert log().endswith("loss=5\n")


def test_a_log_has_whole_lines_only(clock: Clock, log: Callable[[], str]) -> None:
    with Progress("predict", 10, "rows") as shown:
        shown.update(10)
    written = log()
    assert written.endswith("\n")
    assert "\r" not in written


def test_closing_again_writes_nothing(clock: Clock, log: Callable[[], str]) -> None:
    shown = Progress("predict", 10, "rows")
    shown.close()
    assert log()
    shown.close()
    assert not log()


def test_an_error_leaves_the_last_state_and_passes_on(clock: Clock, log: Callable[[], str]) -> None:
    with pytest.raises(RuntimeError), Progress("predict", 10, "rows") as shown:
        shown.update(4)
        raise RuntimeError
    assert log().splitlines()[-1].startswith("predict: 4/10 rows")


@pytest.mark.parametrize("total", [10, None])
def test_a_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("predict", total, "rows") as shown:
        shown.update(4, 7.5, errors=1)
        shown.update(6, 7.5)
    assert "7.50rows/s" in terminal.getvalue().replace(" ", "")
    assert terminal.getvalue().count("\n") == 1
    last_state = terminal.getvalue().split("\r")[-1]
    assert last_state.startswith("predict: 10")
    assert "errors=1" in last_state
