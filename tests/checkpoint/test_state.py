"""What a checkpoint is: whole or not there, and every damage noticed by drivers and workers alike."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint.samples import assert_equal, folders, part, save_steps, some_state, zeros
from tfray.checkpoint.checkpoints import Checkpoints, read_weights
from tfray.checkpoint.state import (
    Part,
    Piece,
    Progress,
    Saved,
    StoredTensor,
    complete_checkpoints,
    newest_progress,
)
from tfray.errors import CheckpointMismatch

PROGRESS = st.builds(
    Progress,
    step=st.integers(0, 10**7),
    epoch=st.integers(0, 99),
    pool=st.integers(0, 99),
    step_in_pool=st.integers(0, 10**6),
    tokens=st.integers(0, 10**13),
    updates=st.integers(0, 10**7),
    skipped=st.integers(0, 10**4),
    spikes=st.fixed_dictionaries({"norms": st.lists(st.floats(0, 1e9), max_size=5)}),
    best_score=st.floats(allow_nan=False),
    best_step=st.integers(0, 10**7),
    stale_validations=st.integers(0, 9),
    seconds=st.floats(0, 1e9),
)
DAMAGES = ["no part", "cut part", "longer part", "flipped part", "cut state", "empty state", "flipped state", "a list"]


def damage(out: Path, step: int, how: str) -> None:
    file = part(out, step) if how.endswith("part") else out / f"checkpoints/step-{step:08d}/state.json"
    data = file.read_bytes()
    match how.split()[0]:
        case "no":
            file.unlink()
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "empty":
            file.write_bytes(b"")
        case "longer":
            file.write_bytes(data + b"\0")
        case "a":
            file.write_bytes(b"[]")
        case _:
            place = data.index(b'"step": ') + 8 if how.endswith("state") else len(data) - 3
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


@given(PROGRESS)
@settings(max_examples=60)
def test_progress_comes_back_as_it_was(progress: Progress) -> None:
    tensors = {"a": StoredTensor("F32", [3], [Piece("p", 8, [0], [3])])}
    saved = Saved(progress, None, {"p": Part(20, "ab")}, tensors)
    assert Saved.from_json(json.loads(json.dumps(saved.to_json()))) == saved


@given(st.data())
@settings(max_examples=100)
def test_any_change_of_state_json_is_noticed(data: st.DataObject) -> None:
    saved = Saved(Progress(step=7, seconds=1.25), 0.5, {"p": Part(20, "ab")}, {})
    content = saved.to_json()
    text = json.dumps(content)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters(codec="ascii")) + text[place + 1 :]
    try:
        found = Saved.from_json(json.loads(changed))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    assert found == saved, "only what says the same may pass, such as 0.50 for 0.5"


def test_without_a_checkpoint_training_begins_at_the_beginning(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "nowhere"):
        assert newest_progress(str(out)) == Progress()
        assert Checkpoints(str(out), keep=1).newest() == Progress()
        state = some_state(1)
        assert Checkpoints(str(out), keep=1).load(state) == Progress()
        assert_equal(state, some_state(1))


def test_the_newest_checkpoint_counts_whatever_its_number_of_digits(tmp_path: Path) -> None:
    save_steps(tmp_path, 90, 1000, 20000)
    assert newest_progress(str(tmp_path)) == Progress(step=20000)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used_by_driver_and_workers(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 10, 20)
    damage(tmp_path, 20, how)
    with caplog.at_level(logging.WARNING):
        assert newest_progress(str(tmp_path)) == Progress(step=10)
    (record,) = warnings(caplog)
    assert "step-00000020' is damaged" in record.getMessage()
    assert (part(tmp_path, 10).parent.parent / "step-00000020").exists()
    what = {"no": "missing", "cut": "bytes in place of", "longer": "bytes in place of", "flipped": "checksum differs"}
    if how.endswith("part"):
        assert what[how.split()[0]] in record.getMessage()
    state = zeros(some_state(1))
    assert Checkpoints(str(tmp_path), keep=2).load(state) == Progress(step=10)
    assert_equal(state, some_state(10))


def test_an_unfinished_checkpoint_does_not_exist_and_no_warning_is_due(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 10, 20)
    (tmp_path / "checkpoints/step-00000020/state.json").unlink()
    assert newest_progress(str(tmp_path)) == Progress(step=10)
    assert not warnings(caplog)


@pytest.mark.parametrize("how", DAMAGES)
def test_when_all_are_damaged_training_does_not_quietly_begin_anew(tmp_path: Path, how: str) -> None:
    save_steps(tmp_path, 10, 20)
    for step in (10, 20):
        damage(tmp_path, step, how)
    for look in (newest_progress, lambda out: Checkpoints(out, 1).newest(), lambda out: Checkpoints(out, 1).load({})):
        with pytest.raises(CheckpointMismatch, match=r"all 2 .*step-00000010: .*step-00000020: .*; bring one back"):
            look(str(tmp_path))


def test_a_checkpoint_counts_as_complete_by_its_files_and_their_sizes(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    damage(tmp_path, 20, "cut part")
    assert [Path(folder).name for folder in complete_checkpoints(str(tmp_path))] == ["step-00000010", "step-00000030"]


def test_one_of_an_older_version_is_refused_by_its_format(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    file = tmp_path / "checkpoints/step-00000010/state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 1}))
    with pytest.raises(CheckpointMismatch, match="has format 1, this version of tfray reads 2"):
        newest_progress(str(tmp_path))


def test_a_part_outside_the_folder_is_refused() -> None:
    content = Saved(Progress(), None, {"../../secret": Part(1, "")}, {}).to_json()
    with pytest.raises(ValueError, match="outside"):
        Saved.from_json(content)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    save_steps(tmp_path, 10)
    names = sorted(path.name for path in part(tmp_path, 10).parent.iterdir())
    assert len(names) == 2 and names[0].endswith(".safetensors") and names[1] == "state.json"
    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    assert_equal(safetensors.torch.load_file(part(tmp_path, 10)), some_state(10))
    state = zeros(some_state(1))
    assert Checkpoints(str(tmp_path), keep=1).load(state) == Progress(step=10)
    weights = read_weights(str(part(tmp_path, 10).parent))
    assert_equal(weights, {n.removeprefix("average."): t for n, t in some_state(10).items() if n.startswith("average")})


def test_folders_that_are_no_checkpoints_are_not_in_the_way(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    (tmp_path / "checkpoints/notes").mkdir()
    assert newest_progress(str(tmp_path)) == Progress(step=10)
    save_steps(tmp_path, 20, keep=1)
    assert folders(tmp_path) == ["notes", "step-00000020"]
