"""Checkpoints: exact, whole or not there, the newest few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tfray.checkpoint.state import Progress, load_tensors, newest_progress, save_checkpoint
from tfray.errors import CheckpointMismatch

TENSORS = {"weight.0": torch.randn(3, 4), "optimizer.0.step": torch.tensor(5.0)}


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def save_steps(out: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save_checkpoint(str(out), Progress(step=step), {**TENSORS, "at": torch.tensor(step)}, keep)


def train_a_little(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(step))).square().sum().backward()
        optimizer.step()


def test_weights_and_optimizer_moments_come_back_bit_for_bit(tmp_path: Path):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    train_a_little(model, optimizer, 5)
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(model.parameters()):
        tensors[f"weight.{index}"] = parameter.detach()
        tensors |= {f"optimizer.{index}.{name}": moment for name, moment in optimizer.state[parameter].items()}
    assert any("exp_avg_sq" in name for name in tensors)
    progress = Progress(step=5)
    save_checkpoint(str(tmp_path), progress, tensors, keep=1)
    loaded = load_tensors(str(tmp_path), progress)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_views_narrow_types_and_special_values_come_back_bit_for_bit(tmp_path: Path):
    tensors = {
        "transposed": torch.randn(3, 5).T,
        "sliced": torch.randn(9)[::2],
        "bf16": torch.randn(4).bfloat16(),
        "special": torch.tensor([float("inf"), -0.0, float("nan"), 1e-45]),
        "scalar": torch.tensor(3.0),
    }
    save_checkpoint(str(tmp_path), Progress(step=1), tensors, keep=1)
    for name, tensor in load_tensors(str(tmp_path), Progress(step=1)).items():
        assert tensor.shape == tensors[name].shape
        assert torch.equal(tensor.view(torch.int8) if tensor.ndim else tensor, bits(tensors[name])), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int8) if tensor.ndim else tensor


@given(
    st.builds(
        Progress,
        step=st.integers(0, 10**7),
        epoch=st.integers(0, 99),
        pool=st.integers(0, 99),
        step_in_pool=st.integers(0, 10**6),
        best_loss=st.floats(0, allow_nan=False),
        best_step=st.integers(0, 10**7),
        stale_validations=st.integers(0, 9),
        seconds=st.floats(0, 1e9),
    )
)
def test_progress_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, progress: Progress):
    out = str(tmp_path_factory.mktemp("run"))
    save_checkpoint(out, progress, TENSORS, keep=1)
    assert newest_progress(out) == progress


def test_without_a_checkpoint_training_begins_at_the_beginning(tmp_path: Path):
    assert newest_progress(str(tmp_path)) == Progress()
    assert newest_progress(str(tmp_path / "nowhere")) == Progress()


def test_the_newest_checkpoint_counts(tmp_path: Path):
    save_steps(tmp_path, 90, 1000, 20000)
    progress = newest_progress(str(tmp_path))
    assert progress.step == 20000
    assert load_tensors(str(tmp_path), progress)["at"] == 20000


@pytest.mark.parametrize("damage", ["no state", "cut state", "empty state", "cut tensors", "no tensors"])
def test_an_incomplete_checkpoint_does_not_exist_and_the_one_before_is_used(tmp_path: Path, damage: str):
    save_steps(tmp_path, 10, 20)
    newest = tmp_path / "checkpoints/step-00000020"
    file = newest / ("state.json" if damage.endswith("state") else "state.safetensors")
    if damage.startswith("no"):
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2 if damage.startswith("cut") else 0])
    progress = newest_progress(str(tmp_path))
    assert progress.step == 10
    assert load_tensors(str(tmp_path), progress)["at"] == 10


def test_damaged_tensors_of_the_right_size_are_refused_with_the_remedy(tmp_path: Path):
    save_steps(tmp_path, 10)
    file = tmp_path / "checkpoints/step-00000010/state.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CheckpointMismatch, match=r"step-00000010.*delete its folder to use the one before"):
        load_tensors(str(tmp_path), newest_progress(str(tmp_path)))


def test_only_the_newest_are_kept(tmp_path: Path):
    save_steps(tmp_path, 10, 20, 30, 40, keep=2)
    assert folders(tmp_path) == ["step-00000030", "step-00000040"]
    save_steps(tmp_path, 50, keep=1)
    assert folders(tmp_path) == ["step-00000050"]


def test_what_a_kill_left_unfinished_is_cleared_away_and_does_not_count_as_kept(tmp_path: Path):
    save_steps(tmp_path, 10, 20, 30)
    (tmp_path / "checkpoints/step-00000020/state.json").unlink()
    save_steps(tmp_path, 40, keep=2)
    assert folders(tmp_path) == ["step-00000030", "step-00000040"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path):
    save_steps(tmp_path, 10)
    save_checkpoint(str(tmp_path), Progress(step=10, epoch=3), {"other": torch.ones(2)}, keep=2)
    assert newest_progress(str(tmp_path)) == Progress(step=10, epoch=3)
    assert list(load_tensors(str(tmp_path), Progress(step=10))) == ["other"]


def test_a_checkpoint_is_safetensors_and_json(tmp_path: Path):
    save_steps(tmp_path, 10)
    folder = tmp_path / "checkpoints/step-00000010"
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    data = (folder / "state.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {*TENSORS, "at"}
