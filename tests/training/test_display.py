"""What people see comes from the log alone, and is right whatever died."""

from __future__ import annotations

import errno
import logging
import struct
from pathlib import Path

import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tfray import storage
from tfray.errors import StorageFailure
from tfray.training import display as display_file
from tfray.training.display import CURVES, Display
from tfray.training.log import write_event
from tfray.training.tensorboard import FOLDER, TensorBoard

START = {"event": "start", "parameters": 10, "steps": 100, "workers": 1, "device": "cpu", "precision": "float32"}


def start(step: int) -> dict:
    return START | {"step": step, "seconds": float(step)}


def train(step: int, loss: float) -> dict:
    rates = {"source_tokens_per_second": 5.0, "target_tokens_per_second": 6.0, "padding": 0.1, "learning_rate": 1e-3}
    event = {"event": "train", "steps": 100, "epoch": 0, "loss": loss, "seconds_left": 3.0, "gradient_norm": 1.0}
    return event | rates | {"step": step, "seconds": float(step)}


def valid(step: int, **found: float) -> dict:
    return {"event": "valid", "step": step, "seconds": float(step), "is_best": True, **found}


def read_board(folder: Path) -> dict[str, dict[int, float]]:
    """Return the points as TensorBoard shows them: a file's start drops those from its step on."""
    points: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                points = {tag: [p for p in own if p[0] < event.step] for tag, own in points.items()}
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    for tag, own in points.items():
        assert len({step for step, _ in own}) == len(own), f"{tag} has a step twice"
    return {tag: dict(own) for tag, own in points.items()}


def test_a_board_has_every_number_of_training_and_validation(tmp_path: Path):
    board = TensorBoard(str(tmp_path), [start(0), train(10, 4.0), valid(10, loss=3.5, bleu=12.0)])
    board.flush()
    points = read_board(tmp_path / FOLDER)
    assert points["training/loss"] == {10: 4.0} and points["validation/loss"] == {10: 3.5}
    assert points["validation/bleu"] == {10: 12.0} and points["training/target_tokens_per_second"] == {10: 6.0}
    assert not {"training/step", "training/steps", "validation/is_best"} & set(points)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=20), st.integers(0, 20))
def test_no_step_is_shown_twice_after_crashes_of_workers_and_of_the_driver(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[bool, int]], driver_ends_after: int
):
    events, curve, step = [start(0)], {}, 0
    for number, (is_crash, amount) in enumerate(moves):
        step = max(0, step - amount) if is_crash else step + amount
        events.append(start(step) if is_crash else train(step, float(number)))
        curve = {at: loss for at, loss in curve.items() if at <= step}
        curve |= {} if is_crash else {step: float(number)}
    out = tmp_path_factory.mktemp("run")
    first = TensorBoard(str(out), [])
    for event in events[:driver_ends_after]:
        first.add(event)
    second = TensorBoard(str(out), events[:driver_ends_after])
    for event in events[driver_ends_after:]:
        second.add(event)
    second.flush()
    assert read_board(out / FOLDER).get("training/loss", {}) == curve


def test_relative_time_is_that_of_training(tmp_path: Path):
    board = TensorBoard(str(tmp_path), [start(0), train(10, 4.0), train(40, 3.0)])
    board.flush()
    (path,) = (tmp_path / FOLDER).iterdir()
    data, times = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        times += [event.wall_time] if event.HasField("summary") else []
        data = data[16 + length :]
    assert times[1] - times[0] == pytest.approx(30.0, abs=0.01)


def test_events_are_shown_once_and_those_of_earlier_runs_not_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    out = str(tmp_path)
    write_event(out, train(10, 4.0))
    display = Display(out)
    with caplog.at_level(logging.INFO):
        display.update()
        write_event(out, start(10))
        write_event(out, {"event": "something for programs", "step": 10})
        write_event(out, train(20, 3.0))
        display.update()
        display.update()
        write_event(out, train(30, 2.0))
        display.update()
        display.draw()
    assert [message.split()[0:2] for message in caplog.messages] == [
        ["training:", "0.0"],
        ["step", "20/100"],
        ["step", "30/100"],
    ]
    assert read_board(tmp_path / FOLDER)["training/loss"] == {10: 4.0, 20: 3.0, 30: 2.0}


def test_the_picture_is_drawn_at_validations_but_not_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    def draw(events: list[dict]) -> bytes:
        drawn.append(len(events))
        return b"picture"

    monkeypatch.setattr(display_file, "draw_curves", draw)
    out = str(tmp_path)
    display = Display(out)
    for event in (start(0), train(10, 4.0)):
        write_event(out, event)
    display.update()
    assert drawn == []
    write_event(out, valid(10, loss=3.0, perplexity=20.0))
    display.update()
    assert drawn == [3] and (tmp_path / CURVES).read_bytes() == b"picture"
    write_event(out, valid(20, loss=2.0, perplexity=9.0))
    display.update()
    assert drawn == [3]
    display.drawn -= display_file.DRAW_SECONDS
    display.update()
    assert drawn == [3, 4]
    display.draw()
    assert drawn == [3, 4, 4]


def fail(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_once_harms_nothing_and_all_is_made_up_for_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    out = str(tmp_path)
    display = Display(out)
    events = [start(0), train(10, 4.0), valid(10, loss=3.0, perplexity=20.0), train(20, 3.0)]
    with monkeypatch.context() as full, caplog.at_level(logging.INFO):
        full.setattr(storage, "publish_bytes", fail)
        full.setattr(EventsWriter, "write_event", fail)
        for event in events:
            write_event(out, event)
            display.update()
        display.draw()
        Display(out).draw()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all(
        "training does not depend" in warning and "No space left" in warning for warning in warnings
    )
    assert sum("loss" in message for message in caplog.messages) == 3, "the lines are shown all the same"
    assert not (tmp_path / CURVES).exists()
    display.draw()
    assert read_board(tmp_path / FOLDER)["training/loss"] == {10: 4.0, 20: 3.0}
    assert (tmp_path / CURVES).exists()


def test_a_log_that_cannot_be_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_event(str(tmp_path), train(10, 4.0))
    with monkeypatch.context() as lost:
        lost.setattr(storage, "file_size", fail)
        display = Display(str(tmp_path))
        display.update()
    display.update()
    assert display.events == [train(10, 4.0)]


def test_a_storage_that_fails_while_the_log_is_looked_at_is_said_once_and_harms_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def lose(path: str) -> int:
        raise StorageFailure(f"{path!r} cannot be read: see that it can be reached")

    write_event(str(tmp_path), train(10, 4.0))
    display = Display(str(tmp_path))
    write_event(str(tmp_path), train(20, 3.0))
    with monkeypatch.context() as lost:
        lost.setattr(storage, "file_size", lose)
        for _ in range(3):
            display.update()
    assert ["training does not depend" in message for message in caplog.messages] == [True]
    display.update()
    assert display.events == [train(10, 4.0), train(20, 3.0)]


@pytest.mark.ray  # as slow as one: a server of its own
def test_in_an_object_store_the_picture_and_the_board_are_put_there(monkeypatch: pytest.MonkeyPatch):
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        pyarrow.fs.FileSystem.from_uri(f"s3://runs?{options}&allow_bucket_creation=true")[0].create_dir("runs")
        out = f"s3://runs/one?{options}"
        display = Display(out)
        for event in (start(0), train(10, 4.0), valid(10, loss=3.0, perplexity=20.0)):
            write_event(out, event)
        display.update()
        display.draw()
        assert storage.read_bytes(storage.join(out, CURVES)).startswith(b"\x89PNG")
        (board,) = storage.list_files(storage.join(out, FOLDER))
        assert b"validation/loss" in storage.read_bytes(board)
    finally:
        server.stop()
