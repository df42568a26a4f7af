"""The workers that save and load together, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


class Group:
    """One worker alone, or those of a process group."""

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group
        self.rank = dist.get_rank(process_group) if process_group else 0
        self.workers = dist.get_world_size(process_group) if process_group else 1

    @property
    def is_alone(self) -> bool:
        """True where there is no one to talk to."""
        return self.process_group is None

    def gather(self, value: Value) -> list[Value]:
        """Return every worker's value, by rank."""
        if self.is_alone:
            return [value]
        values: list[Value | None] = [None] * self.workers
        dist.all_gather_object(values, value, self.process_group)
        return values  # type: ignore[return-value]

    def first(self, function: Callable[[], Value]) -> Value:
        """Return what a function gives on the first worker; what it raises there is raised by all."""
        if self.is_alone:
            return function()
        answer: list[object] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, dist.get_global_rank(self.process_group, 0), self.process_group)  # type: ignore[arg-type]
        if isinstance(answer[1], Exception):
            raise answer[1]
        return answer[0]  # type: ignore[return-value]


def open_group() -> Group:
    """Return the training workers on a gloo group of their own: the one in the background must not meet training's."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Group()
    return Group(dist.new_group(backend="gloo"))  # type: ignore[arg-type]
