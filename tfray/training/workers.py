"""The workers that train together: those of torch.distributed's default group, or this process alone."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of training workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_from_workers(value: Value) -> list[Value]:
    """Return every worker's value, by rank, on every worker."""
    if world_size() == 1:
        return [value]
    values: list[Value | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def sum_over_workers(value: Tensor) -> Tensor:
    """Return a CPU tensor summed over all workers."""
    if world_size() == 1:
        return value
    total = value.to("cuda") if dist.get_backend() == "nccl" else value.clone()
    dist.all_reduce(total)
    return total.cpu()
