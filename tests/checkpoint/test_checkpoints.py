"""Saving and loading by one worker: exact, in the background, kept by policy, intact when the disk is full."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.samples import KINDS, assert_equal, folders, part, save_steps, some_state, zeros
from tfray import storage
from tfray.checkpoint import refusal
from tfray.checkpoint.checkpoints import Checkpoints, best_folders, read_weights
from tfray.checkpoint.state import Progress, complete_checkpoints, newest_progress
from tfray.errors import CheckpointMismatch, InputError, StorageFailure


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Yield the URI of a folder in an empty bucket of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        pyarrow.fs.FileSystem.from_uri(f"s3://runs?{options}&allow_bucket_creation=true")[0].create_dir("runs")
        yield f"s3://runs/one?{options}"
    server.stop()


def test_scores_of_other_validation_data_are_not_compared_and_the_loaded_one_is_known(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(str(tmp_path), keep=1, keep_best=2), some_state(1)
    for step, score, data in (
        (1, 9.0, "easy"),
        (2, 8.0, "easy"),
        (3, -3.0, "hard"),
        (4, -2.0, "hard"),
        (5, -1.0, "hard"),
    ):
        checkpoints.save(Progress(step=step, best_metric="loss", judged_by=data), state, score)
    checkpoints.wait()
    assert folders(tmp_path) == ["step-00000004", "step-00000005"]
    again = Checkpoints(str(tmp_path), keep=1)
    assert again.load(zeros(state)).step == 5 and again.score == -1.0


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def test_every_bit_comes_back_in_place_from_any_place(place: str) -> None:
    state = some_state(1) | {
        "weight.transposed": torch.randn(3, 5).T,
        "weight.sliced": torch.randn(9)[::2],
        "weight.bf16": torch.randn(5).bfloat16(),
        "weight.special": torch.tensor([float("inf"), -0.0, float("nan"), 1e-45]),
        "weight.parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "weight.count": torch.tensor(2**53 + 1),
        "weight.empty": torch.zeros(0, 4),
    }
    checkpoints = Checkpoints(place, keep=1)
    for step in (1, 2):
        checkpoints.save(Progress(step=step, epoch=3, spikes={"norms": [1.5]}), state)
    checkpoints.wait()
    live = zeros(state)
    addresses = {name: tensor.data_ptr() for name, tensor in live.items()}
    assert Checkpoints(place, keep=1).load(live) == Progress(step=2, epoch=3, spikes={"norms": [1.5]})
    assert_equal(live, {name: tensor.detach() for name, tensor in state.items()})
    assert {name: tensor.data_ptr() for name, tensor in live.items()} == addresses
    (folder,) = complete_checkpoints(place)
    assert newest_progress(place).step == 2
    names = [path.partition("?")[0].rpartition("/")[2] for path in storage.list_files(folder)]
    assert len(names) == 2 and "state.json" in names, "what was replaced is gone"
    storage.remove(storage.join(folder, next(name for name in names if name != "state.json")))
    with pytest.raises(CheckpointMismatch, match="is missing"):
        newest_progress(place)


def test_tensors_may_change_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, publish = threading.Event(), storage.publish

    def wait_and_publish(path: str) -> Any:
        assert may_write.wait(30)
        return publish(path)

    monkeypatch.setattr(storage, "publish", wait_and_publish)
    checkpoints, state = Checkpoints(str(tmp_path), keep=2), some_state(1)
    checkpoints.save(Progress(step=1), state)  # returns, though nothing can be written yet
    for tensor in state.values():
        tensor.zero_()
    assert newest_progress(str(tmp_path)) == Progress()
    may_write.set()
    checkpoints.wait()
    assert checkpoints.load(state) == Progress(step=1)
    assert_equal(state, some_state(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_are_copied_to_pinned_memory_before_save_returns(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    state = {name: tensor.cuda() for name, tensor in some_state(1).items()} | {
        "weight.large": torch.ones(1 << 26).cuda()
    }
    checkpoints.save(Progress(step=1), state)
    for tensor in state.values():
        tensor.zero_()
    checkpoints.wait()
    assert all(buffer.is_pinned() for buffer in checkpoints.staging.buffers.values())
    assert checkpoints.load(state) == Progress(step=1)
    assert_equal(
        {name: tensor.cpu() for name, tensor in state.items()}, some_state(1) | {"weight.large": torch.ones(1 << 26)}
    )


def test_buffers_are_kept_from_one_save_to_the_next(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    before = {name: buffer.data_ptr() for name, buffer in checkpoints.staging.buffers.items()}
    checkpoints.save(Progress(step=2), some_state(2))
    checkpoints.wait()
    assert {name: buffer.data_ptr() for name, buffer in checkpoints.staging.buffers.items()} == before
    assert checkpoints.waited_seconds > 0


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {10: 1.0, 20: 9.0, 30: float("nan"), 40: 7.0, 50: 2.0}
    save_steps(tmp_path, 10, 20, 30, 40, 50, 60, keep=2, keep_best=2, scores=scores)
    assert folders(tmp_path) == [f"step-000000{step}" for step in (20, 40, 50, 60)]
    save_steps(tmp_path, 70, keep=1)
    assert folders(tmp_path) == ["step-00000070"]


@given(
    st.lists(st.none() | st.floats(allow_nan=True) | st.integers(0, 3), min_size=1),
    st.integers(0, 4),
)
def test_of_the_best_checkpoints_no_better_one_is_dropped(scores: list, keep_best: int) -> None:
    names = [f"{index:04}" for index in range(len(scores))]
    best = best_folders(list(zip(names, scores, strict=True)), keep_best)
    numbers = {name: score for name, score in zip(names, scores, strict=True) if score is not None and score == score}
    assert len(best) == min(keep_best, len(numbers)) and len(set(best)) == len(best)
    if best:
        assert min(numbers[name] for name in best) >= max(
            (numbers[n] for n in numbers if n not in best), default=-1e999
        )


def test_what_a_kill_left_unfinished_is_cleared_away_and_does_not_count_as_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    (tmp_path / "checkpoints/step-00000020/state.json").unlink()
    (tmp_path / "checkpoints/step-00000030/.part.killed").write_bytes(b"half")
    save_steps(tmp_path, 40, keep=2)
    assert folders(tmp_path) == ["step-00000030", "step-00000040"]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    file = part(tmp_path, 20)
    file.write_bytes(file.read_bytes()[::-1])
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    assert checkpoints.newest() == Progress(step=10)
    checkpoints.save(Progress(step=15), some_state(15))
    checkpoints.wait()
    assert folders(tmp_path) == ["step-00000010", "step-00000015"]
    assert newest_progress(str(tmp_path)) == Progress(step=15)


def test_a_step_that_is_saved_again_replaces_the_whole_one_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, publish_json = save_steps(tmp_path, 10, keep=1), storage.publish_json
    old = part(tmp_path, 10)

    def look_and_publish(path: str, value: object) -> None:
        assert old.exists() and newest_progress(str(tmp_path)) == Progress(step=10)
        publish_json(path, value)

    monkeypatch.setattr(storage, "publish_json", look_and_publish)
    checkpoints.save(Progress(step=10, epoch=3), some_state(3))
    checkpoints.wait()
    assert part(tmp_path, 10) != old
    live = zeros(some_state(1))
    assert checkpoints.load(live) == Progress(step=10, epoch=3)
    assert_equal(live, some_state(3))


def test_another_models_checkpoint_is_refused_by_tensor_shapes_and_remedy(tmp_path: Path) -> None:
    checkpoints, good = save_steps(tmp_path, 10), some_state(1)
    for live, words in [
        (good | {"weight.inner": torch.zeros(32, 8)}, r"'weight\.inner' in shape \[24, 8\], the model in \[32, 8\]"),
        (good | {"weight.more": torch.zeros(2)}, r"no 'weight\.more', which the model has"),
        ({name: tensor for name, tensor in good.items() if name != "exp_avg.bias"}, "'exp_avg.bias', which the model"),
    ]:
        with pytest.raises(CheckpointMismatch, match=words + r".*; train on with the model settings that it was"):
            checkpoints.load(live)


def test_an_average_that_is_new_begins_at_the_weights_and_one_that_is_gone_is_left_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    without = some_state(1, kinds=KINDS[:3])
    checkpoints.save(Progress(step=1), without)
    checkpoints.wait()
    live = zeros(some_state(1))
    checkpoints.load(live)
    weights = {name[7:]: tensor for name, tensor in without.items() if name.startswith("weight.")}
    assert_equal({name[8:]: tensor for name, tensor in live.items() if name.startswith("average.")}, weights)
    assert_equal(read_weights(complete_checkpoints(str(tmp_path))[0]), weights)
    save_steps(tmp_path, 2)
    live = zeros(without)
    assert checkpoints.load(live) == Progress(step=2)
    assert_equal(live, {name: tensor for name, tensor in some_state(2).items() if name in without})


def test_weights_of_a_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    file = part(tmp_path, 10)
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(CheckpointMismatch, match=r"step-00000010' is damaged: part-.* checksum differs"):
        read_weights(str(file.parent))


def test_a_part_that_vanishes_between_the_look_and_the_reading_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 10, 20)
    checkpoints, live = Checkpoints(str(tmp_path), keep=2), zeros(some_state(1))
    assert checkpoints.newest() == Progress(step=20)
    part(tmp_path, 20).unlink()
    assert checkpoints.load(live) == Progress(step=10)
    assert_equal(live, some_state(10))


class FullDisk:
    """A file of a disk that is full after half of what is written."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.write(data)


@pytest.mark.parametrize("step", [10, 20])
def test_a_full_disk_is_told_once_and_the_last_checkpoint_stays_intact(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save_steps(tmp_path, 10)
    enter = storage.publish.__enter__
    with monkeypatch.context() as patch:
        patch.setattr(storage.publish, "__enter__", lambda self: FullDisk(enter(self), 2000))
        checkpoints.save(Progress(step=step), some_state(2))
        with pytest.raises(InputError) as error:
            checkpoints.save(Progress(step=30), some_state(3))
    message = str(error.value)
    for words in (f"step-{step:08d}' cannot be written", "is full", "bytes are wanted", "are free", "make room"):
        assert words in message
    assert message.count("\n") == 0
    assert folders(tmp_path) == ["step-00000010"]
    assert len(list((tmp_path / "checkpoints/step-00000010").iterdir())) == 2
    live = zeros(some_state(1))
    assert checkpoints.load(live) == Progress(step=10)
    assert_equal(live, some_state(10))
    checkpoints.save(Progress(step=40), some_state(4))  # there is room again
    checkpoints.wait()
    assert newest_progress(str(tmp_path)) == Progress(step=40)


def test_a_full_disk_is_told_when_the_last_file_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, value: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    checkpoints = save_steps(tmp_path, 10)
    monkeypatch.setattr(storage, "publish_json", refuse)
    checkpoints.save(Progress(step=20), some_state(2))
    with pytest.raises(InputError, match="is full"):
        checkpoints.wait()
    assert folders(tmp_path) == ["step-00000010"]


LIMITED = """
import sys
from tests.checkpoint.samples import save_steps
from tfray.errors import InputError
try:
    save_steps(sys.argv[1], 20)
except InputError as error:
    print("refused:", error)
"""


def test_the_kernels_own_refusal_is_told_and_survived(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    limit = part(tmp_path, 10).stat().st_size // 2
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert ended.stdout.startswith("refused: checkpoint") and "is full ([Errno 27]" in ended.stdout, ended.stderr
    assert folders(tmp_path) == ["step-00000010"]
    assert newest_progress(str(tmp_path)) == Progress(step=10)


def test_a_place_that_cannot_be_written_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(Progress(step=1), some_state(1))
    with pytest.raises(InputError, match=r"step-00000001' cannot be written: .*see to it that"):
        checkpoints.wait()


def test_free_bytes_are_those_of_the_disk_that_would_hold_the_folder(tmp_path: Path) -> None:
    assert refusal.free_bytes(str(tmp_path / "not" / "there")) == pytest.approx(refusal.free_bytes("/tmp"), rel=0.5)


def test_an_error_that_is_no_ones_fault_but_ours_keeps_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(Progress(step=1), {"weight.odd": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(KeyError):
        checkpoints.wait()


@pytest.mark.parametrize("name", ["read_json", "read_chunks"])
def test_what_the_storage_does_not_give_just_now_is_neither_damaged_nor_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checkpoints = save_steps(tmp_path, 1, 2, keep=2)
    before, newest = folders(tmp_path), complete_checkpoints(str(tmp_path))[-1]

    def fail(*_: object) -> Any:
        raise StorageFailure("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, name, fail)
        with pytest.raises(StorageFailure, match="the network is down"):
            newest_progress(str(tmp_path))
        checkpoints.clear(lambda: checkpoints.sweep(newest))
    assert folders(tmp_path) == before
    assert newest_progress(str(tmp_path)).step == 2
