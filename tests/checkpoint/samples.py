"""States to save, and the damage that is done to them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Progress

KINDS = ("weight", "exp_avg", "exp_avg_sq", "average")
SHAPES = {"embedding": (37, 8), "inner": (24, 8), "output": (8, 24), "bias": (24,), "scale": (), "short": (3, 2)}


def some_state(seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Tensor]:
    """Return tensors as a training state names them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{kind}.{name}": torch.randn(shape, generator=generator) for kind in kinds for name, shape in SHAPES.items()
    }


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def save_steps(
    out: Path, *steps: int, keep: int = 9, keep_best: int = 0, scores: dict[int, float] | None = None, every: int = 1
):
    """Save a state at each step, made from the step."""
    checkpoints = Checkpoints(str(out), keep, keep_best, every)
    for step in steps:
        checkpoints.save(Progress(step=step), some_state(step), (scores or {}).get(step))
    checkpoints.wait()
    return checkpoints


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def part(out: Path, step: int) -> Path:
    (found,) = (out / f"checkpoints/step-{step:08d}").glob("part-*.safetensors")
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
