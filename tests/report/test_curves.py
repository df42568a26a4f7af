"""The picture of a training log, whatever state a killed process left the log in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfray.errors import InputError
from tfray.report.curves import Curve, draw_curves, read_curve, read_log

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def train_line(step: int, loss: float) -> str:
    event = {"event": "train", "step": step, "loss": loss, "learning_rate": 1e-4}
    return json.dumps(event | {"target_tokens_per_second": 8800})


def valid_line(step: int, loss: float) -> str:
    return json.dumps({"event": "valid", "step": step, "loss": loss})


def write_log(folder: Path, *lines: str) -> Path:
    log = folder / "log.jsonl"
    log.write_text("\n".join(lines), encoding="utf-8")
    return log


@pytest.mark.parametrize(
    "lines",
    [
        [train_line(50, 6.1), train_line(100, 5.0), valid_line(100, 4.8)],
        [train_line(50, 6.1)],
        [valid_line(100, 4.8)],
        [valid_line(100, float("nan")), train_line(100, float("inf"))],
    ],
    ids=["both", "one line", "no training", "not finite"],
)
def test_any_log_with_a_line_gives_a_picture(tmp_path: Path, lines: list[str]) -> None:
    picture = tmp_path / "curves.png"
    draw_curves(write_log(tmp_path, *lines), picture)
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


def test_of_a_step_done_again_after_a_crash_the_later_line_wins(tmp_path: Path) -> None:
    first_run = [train_line(50, 6.0), train_line(100, 5.0), train_line(150, 4.0)]
    second_run = [train_line(100, 5.5), train_line(150, 4.5)]
    lines = read_log(write_log(tmp_path, *first_run, *second_run))
    assert read_curve(lines, "train", "loss") == Curve([50, 100, 150], [6.0, 5.5, 4.5])


@pytest.mark.parametrize("kept", [1, 20, len(train_line(100, 5.0)) - 1])
def test_a_cut_last_line_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int) -> None:
    lines = read_log(write_log(tmp_path, train_line(50, 6.0), train_line(100, 5.0)[:kept]))
    assert [line["step"] for line in lines] == [50]
    assert "skipped 1 cut lines" in caplog.text


def test_a_line_cut_inside_a_character_is_skipped(tmp_path: Path) -> None:
    log = write_log(tmp_path, train_line(50, 6.0), "")
    log.write_bytes(log.read_bytes() + '{"event": "é'.encode()[:-1])
    assert [line["step"] for line in read_log(log)] == [50]


@pytest.mark.parametrize("text", ["", '{"event": "tra', '{"event": "start"}'])
def test_a_log_without_a_line_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"log\.jsonl has no line"):
        draw_curves(write_log(tmp_path, text), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_best_validation_is_the_lowest_finite_loss() -> None:
    nan = float("nan")
    assert Curve([1, 2, 3, 4], [nan, 2.0, 1.5, 1.7]).best() == (3, 1.5)
    assert Curve([1], [nan]).best() is None
