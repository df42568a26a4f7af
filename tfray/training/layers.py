"""How the layers of a Transformer are run in training: compiled on a GPU, recomputed where memory is short.

Both are done layer by layer, from outside: a layer is compiled once for all of a stack and for all lengths, and what
is kept for the backward is each layer's input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer


def prepare_layers(transformer: Transformer, config: TrainingConfig, device: torch.device) -> None:
    """Have the layers run as the settings say, once they are on `device`; their weights and names stay as they are."""
    is_compiled = config.compile == "yes" or (config.compile == "auto" and device.type == "cuda")
    for layer in [*transformer.encoder, *transformer.decoder]:
        if is_compiled:
            compile_layer(layer)
        if config.activation_checkpointing:
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
