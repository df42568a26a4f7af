"""Parameters in one flat buffer, so that an optimizer, a reduction and a norm are one pass over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 32
"""Elements at whose multiples a parameter begins: a cache line of bf16, two of fp32."""


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies: first the ones that decay, in the model's order, then the others."""

    shapes: dict[str, torch.Size]
    offsets: dict[str, int]
    decayed: int
    """Elements before the first parameter that does not decay."""
    size: int
    """Elements in all, with the gaps, which stay 0."""

    @staticmethod
    def of(model: nn.Module) -> Layout:
        """Return the layout of a model's parameters."""
        parameters, decaying = dict(model.named_parameters()), decaying_names(model)
        order = sorted(parameters, key=lambda name: name not in decaying)
        offsets, end, decayed = {}, 0, 0
        for name in order:
            offsets[name] = end
            end += -(-parameters[name].numel() // ALIGNMENT) * ALIGNMENT
            decayed = end if name in decaying else decayed
        return Layout({name: parameters[name].shape for name in order}, offsets, decayed, end)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return each parameter's place in a buffer, by name and in order."""
        return {
            name: buffer[self.offsets[name] : self.offsets[name] + shape.numel()].view(shape)
            for name, shape in self.shapes.items()
        }


def decaying_names(model: nn.Module) -> set[str]:
    """Return the parameters that decay: matrices do; the embedding, biases and norms do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in embeddings}
