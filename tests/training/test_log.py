"""The training log: lines for programs, the same as lines for people."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray import storage
from tfray.training.log import LOG, LogReader, WarningEvents, describe, format_seconds, write_event

EVENTS: dict[str, dict] = {
    "start": {
        "event": "start",
        "parameters": 12_345_678,
        "steps": 1000,
        "workers": 2,
        "device": "cpu",
        "precision": "float32",
        "step": 0,
        "seconds": 0.0,
    },
    "train": {
        "event": "train",
        "steps": 1000,
        "epoch": 3,
        "learning_rate": 0.00051,
        "seconds_left": 3725.2,
        "loss": 4.32109,
        "gradient_norm": 1.2,
        "gradient_norm_max": 3.4,
        "target_tokens_per_step": 4096.0,
        "skipped": 2,
        "data_wait": 0.0123,
        "checkpoint_wait": 0.2,
        "peak_memory_gb": 1.25,
        "mfu": 0.312,
        "source_tokens_per_second": 12345.6,
        "target_tokens_per_second": 23456.7,
        "padding": 0.0421,
        "step": 50,
        "seconds": 61.2,
    },
    "scores": {"event": "valid", "bleu": 31.2345, "chrf": 60.1, "is_best": False, "step": 500, "seconds": 610.0},
    "valid": {"event": "valid", "loss": 3.21, "perplexity": 24.78, "is_best": True, "step": 500, "seconds": 600.0},
}


def test_events_come_back_in_order(tmp_path: Path):
    assert LogReader(str(tmp_path)).new_events() == []
    for event in EVENTS.values():
        write_event(str(tmp_path), event)
    assert LogReader(str(tmp_path)).new_events() == list(EVENTS.values())
    assert (tmp_path / LOG).read_text().count("\n") == len(EVENTS)


@pytest.mark.parametrize("kept", [1, 10, 50])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path, kept: int):
    write_event(str(tmp_path), EVENTS["start"])
    write_event(str(tmp_path), EVENTS["valid"])
    lines = (tmp_path / LOG).read_text().splitlines(keepends=True)
    (tmp_path / LOG).write_text(lines[0] + lines[1][:kept])
    assert LogReader(str(tmp_path)).new_events() == [EVENTS["start"]]


@given(st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_a_reader_gets_every_event_once_whatever_was_written_when_it_looked(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], is_cut_by_a_kill: bool
):
    whole = "".join(json.dumps(event) + "\n" for event in EVENTS.values())
    text = '{"event": "tra\n' + whole if is_cut_by_a_kill else whole
    folder = tmp_path_factory.mktemp("log")
    reader, found = LogReader(str(folder)), []
    for stop in [*sorted(cuts), len(text)]:
        (folder / LOG).write_text(text[:stop])
        found += reader.new_events()
    assert found == list(EVENTS.values())
    assert reader.new_events() == []


def test_a_value_that_is_not_finite_is_null_for_programs_and_not_a_number_for_us(tmp_path: Path):
    write_event(str(tmp_path), EVENTS["train"] | {"loss": math.nan, "gradient_norm": math.inf})
    stored = json.loads((tmp_path / LOG).read_text(), parse_constant=pytest.fail)
    assert stored == EVENTS["train"] | {"loss": None, "gradient_norm": None}
    (event,) = LogReader(str(tmp_path)).new_events()
    assert math.isnan(event["loss"]) and "loss nan" in describe(event)


def test_warnings_of_a_worker_are_shown_to_people_and_a_full_disk_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logger, handler = logging.getLogger("tfray.somewhere"), WarningEvents(str(tmp_path))
    logger.addHandler(handler)
    try:
        logger.warning("checkpoint %r is damaged", "step-1")
        logger.info("nothing that matters")
        monkeypatch.setattr(storage, "append_line", lambda *_: (_ for _ in ()).throw(OSError("full")))
        logger.warning("lost")
    finally:
        logger.removeHandler(handler)
    assert [describe(event) for event in LogReader(str(tmp_path)).new_events()] == ["checkpoint 'step-1' is damaged"]


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_is_one_line_for_people(kind: str):
    line = describe(EVENTS[kind])
    assert "\n" not in line and len(line) < 220
    assert not any(character in line for character in "{}[]")


def test_lines_for_people_hold_the_numbers_with_their_units():
    assert describe(EVENTS["start"]) == (
        "training: 12.3 M parameters, 1000 steps, 2 worker(s) on cpu in float32, from step 0"
    )
    train = describe(EVENTS["train"])
    for part in ("50/1000", "epoch 3", "loss 4.3211", "12,346 source", "23,457 target tokens/s", "4.2%", "5.10e-04"):
        assert part in train
    assert train.endswith("1:02:05 left")
    for part in ("MFU 31.2%", "waiting for data 1%", "for checkpoints 20%", "2 step(s) skipped"):
        assert part in train
    assert describe(EVENTS["scores"]) == "step    500  BLEU 31.23, chrF 60.10"
    assert describe(EVENTS["valid"] | {"accuracy": 0.91234, "validation_seconds": 61.2}).endswith(
        "perplexity 24.78, accuracy 0.9123 in 1:01 (best)"
    )
    assert describe(EVENTS["start"] | {"peak": "290 GFLOP/s measured in bfloat16"}).endswith(
        "from step 0; MFU is the share of 290 GFLOP/s measured in bfloat16"
    )
    assert describe(EVENTS["valid"]).endswith("validation loss 3.2100, perplexity 24.78 (best)")
    assert not describe({**EVENTS["valid"], "is_best": False}).endswith("(best)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90_061, "25:01:01"),
        (-30, "0:00"),
    ],
)
def test_times_are_minutes_or_hours_and_an_estimate_that_ran_out_is_zero(seconds: float, text: str):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("reason", "said"), [("end", "interrupted"), ("move", "a worker was asked to go")])
def test_people_read_why_training_stops_before_its_end(reason: str, said: str):
    assert said in describe({"event": "stop", "reason": reason, "step": 7})
