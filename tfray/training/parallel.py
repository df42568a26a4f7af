"""How the workers share the model: each all of it, or slices."""

from __future__ import annotations

import torch

from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer
from tfray.training.replicated import Replicated
from tfray.training.sharded import Sharded
from tfray.training.state import TrainState
from tfray.training.workers import world_size


def make_state(
    transformer: Transformer, config: TrainingConfig, dtype: torch.dtype, device: torch.device
) -> TrainState:
    """Return the state of training a Transformer on `device` in `dtype`, as training.parallel says.

    Give the Transformer on the CPU: fsdp moves a layer at a time, so that no device has to hold all of it. One worker
    alone has nothing to share out: it holds the whole model either way.
    """
    if device.type == "cuda":  # on which torch.distributed and FSDP work, whatever device a tensor is on
        torch.cuda.set_device(device)
    if config.parallel == "fsdp" and world_size() > 1:
        return Sharded(transformer, config, dtype, device)
    return Replicated(transformer.to(device), config, dtype)
