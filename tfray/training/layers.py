"""How the layers of a Transformer are run in training: compiled on a GPU, recomputed where memory is short.

Both are done layer by layer, from outside: a layer is compiled once for all of a stack and for all lengths, and what
is kept for the backward is each layer's input.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer

logger = logging.getLogger(__name__)


def wants_compiling(config: TrainingConfig, device: torch.device) -> bool:
    """Say whether what computes on a device is to be compiled: "auto" means on a GPU, if that works there."""
    if config.compile == "auto":
        return device.type == "cuda" and can_compile(device)
    return config.compile == "yes"


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Say whether a trifle can be compiled for a device and computed; what fails is said once."""
    try:
        torch.compile(lambda states: states * 2)(torch.ones(2, device=device))
    except Exception as error:  # no C compiler, no Triton, an old GPU: each has errors of its own
        reason = str(error).strip().partition("\n")[0]
        logger.warning("training.compile: torch.compile does not work here, training goes on without: %s", reason)
        return False
    return True


def prepare_layers(transformer: Transformer, is_compiled: bool, is_recomputed: bool) -> None:
    """Have the layers run so; their weights and names stay as they are."""
    for layer in [*transformer.encoder, *transformer.decoder]:
        if is_compiled:
            compile_layer(layer)
        if is_recomputed:
            # around what is compiled: a compiled region keeps its activations as it sees fit
            layer.forward = partial(recomputed, layer.forward)


def compile_layer(layer: nn.Module, **options: object) -> None:
    """Compile a layer's forward for any number of rows and lengths; hooks (FSDP's) stay outside."""
    layer.forward = torch.compile(layer.forward, dynamic=True, **options)  # type: ignore[call-overload]


def recomputed(forward: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Return a layer's output and keep only its arguments: the backward computes the rest again, with the same dropout.

    Our dropout draws from torch's generator, whose state is kept with the arguments.
    """
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=True)
