"""Fully sharded: every worker holds slices of weights, moments and gradients, and whole layers only while it
computes with them (FSDP2).

        slices of the weights (fp32) ──► a layer's weights, gathered (in `dtype`) ──► forward, backward
update of slices ───▲                                                                        │
        slices of the gradient (fp32), summed over workers ◄── its gradient (fp32), summed over lanes
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.errors import InputError
from tfray.model.transformer import Transformer
from tfray.training.flat import decaying_names
from tfray.training.loss import Loss
from tfray.training.model import TrainingModel
from tfray.training.optimizer import adamw, total_norm
from tfray.training.state import TrainState
from tfray.training.workers import sum_over_workers, world_size

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class Sharded(TrainState):
    """Takes over a Transformer's fp32 weights, moves them to `device` a layer at a time, and trains it in `dtype`.

    accumulate(), reduce(), weights() and the model's forward wait for all workers: each must call them as often as
    the others do. Where a worker has several micro-batches a step, their gradients are summed before they are
    sliced: one reduction a step, for 4 bytes a weight on every worker.
    """

    def __init__(
        self, transformer: Transformer, config: TrainingConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        check_backend(device)
        self.config, self.updates, self.device = config, 0, device
        self.names, decaying = list(transformer.state_dict()), decaying_names(transformer)
        self.model = TrainingModel(transformer, config, device)
        self.root = shard(self.model, dtype, device)
        weights: dict[str, DTensor] = dict(transformer.named_parameters())  # type: ignore[assignment]
        self.slices = {"weight": weights, "exp_avg": zeros_like(weights), "exp_avg_sq": zeros_like(weights)}
        if config.ema_decay:
            self.slices["average"] = zeros_like(weights)
            for name, average in self.slices["average"].items():
                average.copy_(weights[name].detach())
        # A parameter with fewer rows than there are workers leaves some of them without a slice.
        owned = [name for name, weight in weights.items() if local(weight).numel()]
        self.parts = (
            ([name for name in owned if name in decaying], config.weight_decay),
            ([name for name in owned if name not in decaying], 0.0),
        )

    def accumulate(self, batch: Batch, scale: float, is_last: bool) -> Loss:
        self.root.set_requires_gradient_sync(is_last)
        self.root.set_is_last_backward(is_last)
        loss = self.model(batch.to(self.device))
        (loss.objective * scale).backward()
        return Loss(*(value.detach() for value in loss))

    def reduce(self) -> float:
        # The last backward has summed the gradients over workers; what is left is the norm over all slices.
        norm = total_norm([gradient for names, _ in self.parts for gradient in self.gradients(names)])
        return float(sum_over_workers(norm.double().square().cpu())) ** 0.5

    def update(self, rate: float, shrink: float) -> None:
        for names, decay in self.parts:
            weights, exp_avg, exp_avg_sq = (self.locals(kind, names) for kind in ("weight", "exp_avg", "exp_avg_sq"))
            gradients = self.gradients(names)
            adamw(weights, gradients, exp_avg, exp_avg_sq, decay, rate, shrink, self.updates, self.config.adam_betas)
            if names and "average" in self.slices:
                averages = self.locals("average", names)
                torch._foreach_lerp_(averages, weights, 1 - self.config.ema_decay)  # type: ignore[attr-defined]
        self.discard()
        self.loaded(self.updates + 1)

    def discard(self) -> None:
        for weight in self.slices["weight"].values():
            weight.grad = None

    def tensors(self) -> dict[str, Tensor]:
        return {f"{kind}.{name}": slices[name].detach() for kind, slices in self.slices.items() for name in slices}

    def loaded(self, updates: int) -> None:
        self.updates = updates
        self.root.reshard()  # the root's weights stay gathered after a forward without backward

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        self.swap_average()
        try:
            yield
        finally:
            self.swap_average()

    def weights(self) -> dict[str, Tensor]:
        slices = self.slices["average" if "average" in self.slices else "weight"]
        with torch.no_grad():
            return {name: slices[name].full_tensor().to("cpu", copy=True) for name in self.names}

    def locals(self, kind: str, names: list[str]) -> list[Tensor]:
        """Return this worker's slices of some parameters' weights, moments or averages."""
        return [local(self.slices[kind][name]) for name in names]

    def gradients(self, names: list[str]) -> list[Tensor]:
        """Return this worker's slices of some parameters' gradients; 0 where the model did not use a parameter."""
        weights = [self.slices["weight"][name] for name in names]
        return [torch.zeros_like(local(w)) if w.grad is None else local(w.grad) for w in weights]  # type: ignore[arg-type]

    def swap_average(self) -> None:
        """Exchange the weights and their moving average, if there is one."""
        for names, _ in self.parts if "average" in self.slices else ():
            for weight, average in zip(self.locals("weight", names), self.locals("average", names), strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)
        self.loaded(self.updates)


def check_backend(device: torch.device) -> None:
    """Refuse workers that have no way to gather and scatter on their device."""
    needed, found = BACKENDS.get(device.type), dist.get_backend_config()
    if needed is None or f"{device.type}:{needed}" not in found.split(","):
        ways = " or ".join(f"{backend} on {kind}" for kind, backend in BACKENDS.items())
        raise InputError(
            f"training.parallel=fsdp needs {ways}, and on {device.type} it finds {found}; use training.parallel=ddp"
        )


def shard(model: TrainingModel, dtype: torch.dtype, device: torch.device) -> FSDPModule:
    """Slice a model's weights over the workers, a layer at a time, in place, and return it.

    The embedding belongs to the model as a whole, so that it is there, whole, for the output layer tied to it.
    """
    transformer, mesh = model.transformer, init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    # The memory's keys and values are made for all decoder layers before the first of them runs. They are views,
    # of which FSDP warns lest somebody works on them in place: nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    fully_shard([layer.cross_attention.key_value for layer in transformer.decoder], mesh=mesh, mp_policy=policy)  # type: ignore[union-attr]
    for layer in (*transformer.encoder, *transformer.decoder):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    root = fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gradients are summed, not averaged; gloo knows no scaled sum
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return this worker's slice of a DTensor, in its place."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def zeros_like(tensors: dict[str, DTensor]) -> dict[str, DTensor]:
    """Return a zero for each tensor, sliced like it."""
    return {name: torch.zeros_like(tensor.detach()) for name, tensor in tensors.items()}  # type: ignore[misc]
