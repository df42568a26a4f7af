"""A network computes in its own precision, whatever the caller has set for all of torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")


def without_autocast(work: Callable[..., Found]) -> Callable[..., Found]:
    """Return a method, of an object with a device, that an autocast around its caller does not touch."""

    @functools.wraps(work)
    def alone(self: Any, *arguments: Any, **named: Any) -> Found:
        with torch.autocast(self.device.type, enabled=False):
            return work(self, *arguments, **named)

    return alone
