"""Data parallel: every worker holds all weights in flat buffers, and one sum of the gradients makes a step.

                  master (fp32) ──► working weights (bf16; in fp32 the master itself) ──► forward, backward
update: one pass ───▲                                                                            │
                  gradient (fp32), the sum over lanes and workers ◄── each parameter's, as it is made ◄┘
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer
from tfray.training.flat import Layout
from tfray.training.loss import Loss
from tfray.training.model import TrainingModel
from tfray.training.optimizer import FlatAdamW, total_norm
from tfray.training.state import TrainState
from tfray.training.workers import world_size

BUCKET_ELEMENTS = 25_000_000
"""Gradients are sent in pieces of about this size while the backward goes on: 100 MB of fp32."""


class Replicated(TrainState):
    """Takes over a Transformer's fp32 weights, wherever they lie, and trains it in `dtype`."""

    def __init__(self, transformer: Transformer, config: TrainingConfig, dtype: torch.dtype) -> None:
        self.config, self.updates = config, 0
        self.device = transformer.output_weight.device
        self.transformer, self.model = transformer, TrainingModel(transformer, config)
        self.layout = Layout.of(transformer)
        self.master = torch.zeros(self.layout.size, device=self.device)
        for name, weight in self.layout.views(self.master).items():
            weight.copy_(transformer.get_parameter(name).detach())
        self.working = self.master if dtype == torch.float32 else self.master.to(dtype)
        for name, weight in self.layout.views(self.working).items():
            transformer.get_parameter(name).data = weight
        self.gradient = torch.zeros_like(self.master)
        self.optimizer = FlatAdamW(self.master, self.layout.decayed, config)
        self.average = self.master.clone() if config.ema_decay else None
        self.buckets = Buckets(self.gradient, self.layout, transformer)

    def accumulate(self, batch: Batch, scale: float, is_last: bool) -> Loss:
        self.buckets.is_sending = is_last and world_size() > 1
        loss = self.model(batch.to(self.device))
        (loss.objective * scale).backward()
        return Loss(*(value.detach() for value in loss))

    def reduce(self) -> float:
        self.buckets.finish()
        return float(total_norm([self.gradient]))

    def update(self, rate: float, shrink: float) -> None:
        self.optimizer.step(self.gradient, rate, shrink, self.updates)
        self.loaded(self.updates + 1)
        if self.average is not None:
            self.average.lerp_(self.master, 1 - self.config.ema_decay)
        self.discard()

    def discard(self) -> None:
        self.buckets.clear()

    def tensors(self) -> dict[str, Tensor]:
        buffers = {"weight": self.master, "exp_avg": self.optimizer.exp_avg, "exp_avg_sq": self.optimizer.exp_avg_sq}
        buffers |= {} if self.average is None else {"average": self.average}
        return {
            f"{kind}.{name}": view
            for kind, buffer in buffers.items()
            for name, view in self.layout.views(buffer).items()
        }

    def loaded(self, updates: int) -> None:
        self.updates = updates
        if self.working is not self.master:
            self.working.copy_(self.master)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        kept = self.working.clone()
        self.working.copy_(self.average)
        try:
            yield
        finally:
            self.working.copy_(kept)

    def weights(self) -> dict[str, Tensor]:
        views = self.layout.views(self.master if self.average is None else self.average)
        return {name: views[name].cpu().clone() for name in self.transformer.state_dict()}


class Buckets:
    """Gathers gradients from the backward into the flat buffer, and sums finished parts of it over the workers."""

    def __init__(self, gradient: Tensor, layout: Layout, transformer: Transformer) -> None:
        self.gradient, self.views = gradient, layout.views(gradient)
        self.bounds, members = cut(layout)
        self.bucket_of = {name: index for index, names in enumerate(members) for name in names}
        self.sizes = [len(names) for names in members]
        self.is_sending = False
        self.clear()
        for name, parameter in transformer.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self.take, name))

    def clear(self) -> None:
        """Begin a new sum."""
        self.seen: set[str] = set()
        self.missing = list(self.sizes)
        self.sent: list[dist.Work | None] = []

    def take(self, name: str, parameter: Tensor) -> None:
        """Add a parameter's gradient, which the backward has just finished, to the sum."""
        assert parameter.grad is not None
        if name in self.seen:
            self.views[name].add_(parameter.grad)
        else:
            self.views[name].copy_(parameter.grad)
            self.seen.add(name)
        parameter.grad = None
        if self.is_sending:
            self.missing[self.bucket_of[name]] -= 1
            while len(self.sent) < len(self.bounds) and not self.missing[len(self.sent)]:
                self.send()

    def send(self) -> None:
        """Begin to sum the next bucket over the workers; every worker sends them in this order."""
        start, stop = self.bounds[len(self.sent)]
        self.sent.append(dist.all_reduce(self.gradient[start:stop], async_op=True))

    def finish(self) -> None:
        """Wait until the whole gradient is summed."""
        for name in self.views.keys() - self.seen:
            self.views[name].zero_()
        while world_size() > 1 and len(self.sent) < len(self.bounds):
            self.send()
        for work in self.sent:
            if work is not None:
                work.wait()


def cut(layout: Layout) -> tuple[list[tuple[int, int]], list[list[str]]]:
    """Return buckets as parts of the flat buffer and as names, the ones that the backward finishes first at the front.

    The decayed matrices lie in the model's order, so the backward finishes them from their end on; the rest, which
    it finishes last of all (the embedding), comes last.
    """
    names = list(layout.shapes)
    first = next((index for index, name in enumerate(names) if layout.offsets[name] >= layout.decayed), len(names))
    bounds, members = [], []
    for group, end in ((names[:first], layout.decayed), (names[first:], layout.size)):
        stop, chosen = end, []
        for name in reversed(group):
            chosen.append(name)
            if stop - layout.offsets[name] >= BUCKET_ELEMENTS or name == group[0]:
                bounds.append((layout.offsets[name], stop))
                members.append(chosen)
                stop, chosen = layout.offsets[name], []
    return bounds, members
