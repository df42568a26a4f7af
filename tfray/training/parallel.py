"""How the workers share the model: each all of it, or slices."""

from __future__ import annotations

import torch

from tfray.config import TrainingConfig
from tfray.model.precision import has_fast_bf16
from tfray.model.transformer import Transformer
from tfray.training.replicated import Replicated
from tfray.training.sharded import Sharded
from tfray.training.state import TrainState
from tfray.training.workers import gather_from_workers, world_size


def agree_on_precision(device: torch.device) -> str:
    """Return what 'auto' stands for: bf16 where every worker's device is fast in it, else fp32; the same on all."""
    claim(device)
    return "bf16" if all(gather_from_workers(has_fast_bf16(device))) else "fp32"


def make_state(
    transformer: Transformer, config: TrainingConfig, dtype: torch.dtype, device: torch.device
) -> TrainState:
    """Return the state of training a Transformer on `device` in `dtype`, as training.parallel says.

    Give the Transformer on the CPU: fsdp moves a layer at a time, so that no device has to hold all of it. One worker
    alone has nothing to share out: it holds the whole model either way.
    """
    claim(device)
    if config.parallel == "fsdp" and world_size() > 1:
        return Sharded(transformer, config, dtype, device)
    return Replicated(transformer.to(device), config, dtype)


def claim(device: torch.device) -> None:
    """Let torch.distributed and FSDP work on a GPU, whatever device a tensor is on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
