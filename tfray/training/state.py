"""The training state as named tensors, and the moving average in place of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tfray.training.step import TrainState


@contextlib.contextmanager
def averaged_weights(state: TrainState) -> Iterator[None]:
    """Put the moving average, if there is one, in place of the weights for the block."""
    swap_average(state)
    try:
        yield
    finally:
        swap_average(state)


@torch.no_grad()
def swap_average(state: TrainState) -> None:
    """Exchange the weights and their moving average."""
    for parameter, average in zip(state.parameters, state.average, strict=False):
        kept = parameter.clone()
        parameter.copy_(average)
        average.copy_(kept)


def named_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return everything of a state that training resumes from, on the CPU, by name."""
    tensors = {}
    for index, parameter in enumerate(state.parameters):
        tensors[f"weight.{index}"] = parameter.detach()
        for name, moment in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = moment
    tensors |= {f"average.{index}": tensor for index, tensor in enumerate(state.average)}
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(state: TrainState, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's tensors into a state."""
    for index, parameter in enumerate(state.parameters):
        parameter.copy_(tensors[f"weight.{index}"])
        for name in ("step", "exp_avg", "exp_avg_sq"):
            saved = tensors[f"optimizer.{index}.{name}"]
            state.optimizer.state[parameter][name] = saved if name == "step" else saved.to(parameter.device)
    for index, average in enumerate(state.average):
        average.copy_(tensors[f"average.{index}"])
