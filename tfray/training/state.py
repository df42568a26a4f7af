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
    """Return everything of a state that training resumes from, live, by name."""
    tensors = {}
    for index, parameter in enumerate(state.parameters):
        tensors[f"weight.{index}"] = parameter.detach()
        for name, moment in moments(state, parameter).items():
            tensors[f"optimizer.{index}.{name}"] = moment
    return tensors | {f"average.{index}": tensor for index, tensor in enumerate(state.average)}


def moments(state: TrainState, parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a parameter, made now where there was no step yet."""
    found = state.optimizer.state[parameter]
    if not found:
        found["step"] = torch.zeros((), device=parameter.device)
        found["exp_avg"], found["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return found
