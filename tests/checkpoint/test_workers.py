"""Real workers over gloo: each writes its part, any number of them loads, and what one meets all hear of."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.checkpoint.ranks import CONTEXT, run_ranks
from tests.checkpoint.samples import assert_equal, folders, save_steps, some_state, zeros
from tfray import storage
from tfray.checkpoint.checkpoints import Checkpoints, read_weights
from tfray.checkpoint.state import Progress, checkpoint_folder, newest_progress
from tfray.errors import CheckpointMismatch, InputError


def placed(state: dict[str, Tensor], placement: str) -> dict[str, Tensor]:
    """Return tensors as workers hold them; scalars are replicated always."""
    if placement == "replicated" or not dist.is_initialized():
        return {name: tensor.clone() for name, tensor in state.items()}
    if placement == "hybrid":
        mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
        where = {1: (Replicate(), Shard(0)), 2: (Replicate(), Shard(0))}
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        where = {1: (Shard(0),), 2: (Shard(0 if placement == "rows" else 1),)}
    return {
        name: distribute_tensor(tensor, mesh, where[tensor.dim()]) if tensor.dim() else tensor.clone()
        for name, tensor in state.items()
    }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(out: str, placement: str, step: int) -> None:
    checkpoints = Checkpoints(out, keep=2)
    live = placed(some_state(step), placement)
    checkpoints.save(Progress(step=step), live)
    for tensor in live.values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    checkpoints.wait()


def load(out: str, placement: str) -> tuple[Progress, dict[str, list]]:
    """Return the progress, and the whole tensors as lists (bit for bit: fp32 is exact in them)."""
    live = placed(zeros(some_state(1)), placement)
    progress = Checkpoints(out, keep=2).load(live)
    return progress, {name: whole(tensor).tolist() for name, tensor in live.items()}


def assert_loaded(answers: list, step: int) -> None:
    for answer in answers:
        progress, lists = answer
        assert progress == Progress(step=step)
        assert_equal({name: torch.tensor(values) for name, values in lists.items()}, some_state(step))


def saved_pieces(out: Path, step: int) -> dict:
    return json.loads((out / f"checkpoints/step-{step:08d}/state.json").read_text())


@pytest.mark.parametrize(
    ("workers", "placement", "loads"),
    [
        (2, "replicated", [(1, "replicated"), (4, "replicated"), (4, "hybrid"), (2, "columns")]),
        (2, "rows", [(1, "replicated"), (4, "rows")]),
        (2, "columns", [(4, "rows")]),
        (4, "hybrid", [(2, "columns")]),
    ],
)
def test_what_some_workers_save_any_number_loads_replicated_or_sharded(
    tmp_path: Path, workers: int, placement: str, loads: list[tuple[int, str]]
) -> None:
    assert run_ranks(workers, tmp_path, save, str(tmp_path), placement, 7) == [None] * workers
    for others, other in loads:
        assert_loaded(run_ranks(others, tmp_path, load, str(tmp_path), other), 7)
    assert newest_progress(str(tmp_path)) == Progress(step=7)
    weights = {name[8:]: tensor for name, tensor in some_state(7).items() if name.startswith("average.")}
    assert_equal(read_weights(checkpoint_folder(str(tmp_path), 7)), weights)


def test_replicated_tensors_are_written_once_and_spread_over_the_workers(tmp_path: Path) -> None:
    run_ranks(4, tmp_path, save, str(tmp_path), "replicated", 7)
    saved = saved_pieces(tmp_path, 7)
    sizes = [part["bytes"] for part in saved["parts"].values()]
    total = sum(tensor.nbytes for tensor in some_state(7).values())
    assert len(sizes) == 4 and max(sizes) < 1.3 * min(sizes)
    assert total < sum(sizes) < total + 4 * 2000, "headers aside, each byte is there once"
    assert all(len(tensor["pieces"]) == 1 for tensor in saved["tensors"].values())


def test_sharded_tensors_are_written_by_those_who_hold_them_and_twins_once(tmp_path: Path) -> None:
    run_ranks(4, tmp_path, save, str(tmp_path), "hybrid", 7)
    saved = saved_pieces(tmp_path, 7)["tensors"]["weight.embedding"]
    assert sorted(tuple(piece["offsets"]) for piece in saved["pieces"]) == [(0, 0), (19, 0)]


def test_what_one_worker_alone_saved_several_load_sharded(tmp_path: Path) -> None:
    save_steps(tmp_path, 7)
    assert_loaded(run_ranks(2, tmp_path, load, str(tmp_path), "rows"), 7)


def test_all_workers_pass_over_the_same_damaged_checkpoint(tmp_path: Path) -> None:
    for step in (6, 7):
        run_ranks(2, tmp_path, save, str(tmp_path), "replicated", step)
    file = sorted((tmp_path / "checkpoints/step-00000007").glob("part-00001*"))[0]
    file.write_bytes(file.read_bytes()[::-1])
    assert_loaded(run_ranks(4, tmp_path, load, str(tmp_path), "replicated"), 6)
    (tmp_path / "checkpoints/step-00000006/state.json").write_text("{")
    answers = run_ranks(2, tmp_path, load, str(tmp_path), "replicated")
    assert [type(answer) for answer in answers] == [CheckpointMismatch] * 2
    assert len({str(answer) for answer in answers}) == 1


def fail_on_the_last(out: str, step: int) -> str:
    """Save where the last rank's disk is full; return what this rank is told."""
    if dist.get_rank() == dist.get_world_size() - 1:

        class Full(storage.publish):
            def __enter__(self):
                raise OSError(28, "No space left on device")

        storage.publish = Full
    checkpoints = Checkpoints(out, keep=2)
    checkpoints.save(Progress(step=step), some_state(step))
    try:
        checkpoints.wait()
    except InputError as error:
        return str(error)
    return "nothing"


def test_one_workers_full_disk_is_told_by_all_and_leaves_nothing_half(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, save, str(tmp_path), "replicated", 6)
    first, last = run_ranks(2, tmp_path, fail_on_the_last, str(tmp_path), 7)
    assert first == last and "step-00000007' cannot be written" in first and "is full" in first
    assert folders(tmp_path) == ["step-00000006"]
    assert_loaded(run_ranks(1, tmp_path, load, str(tmp_path), "replicated"), 6)


def die_before_saving(out: str, pipe) -> None:
    """Save on the first of two ranks while the other is gone; the first sends what it is told.

    The second goes only once the first has opened its group too: one that is gone while groups open is another error.
    """
    rank = int(os.environ["CHECKPOINT_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    checkpoints, opened = Checkpoints(out, keep=2), Path(out, "opened")
    if rank == 1:
        while not opened.exists():
            time.sleep(0.01)
        os._exit(0)
    opened.touch()
    checkpoints.save(Progress(step=7), some_state(7))
    try:
        checkpoints.wait()
    except BaseException as error:
        pipe.send(f"{type(error).__name__}")
    os._exit(0)


def be_one_of_two(rank: int, out: str, pipe) -> None:
    os.environ["CHECKPOINT_RANK"] = str(rank)
    die_before_saving(out, pipe)


def test_a_worker_that_is_gone_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    here, there = CONTEXT.Pipe()
    processes = [CONTEXT.Process(target=be_one_of_two, args=(rank, str(tmp_path), there)) for rank in (0, 1)]
    for process in processes:
        process.start()
    assert here.poll(300), "the first worker still waits for the one that is gone"
    assert here.recv() not in ("", "InputError")
    for process in processes:
        process.join()
    assert newest_progress(str(tmp_path)) == Progress()
