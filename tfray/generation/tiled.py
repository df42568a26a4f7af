"""Linear maps in halves or bytes by kernels of our own: product, bias, activation and residual in one pass.

A processor's matrix tiles (AMX) do the work, or its dot products (AVX-512), for which weights lie in the same order.
Sums are of 32 bits, and so are inputs and outputs, for what surrounds the products is faster so; only between two
products, after an activation, states stay in bf16. The kernel makes them halves or bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.generation import native
from tfray.generation.linear import Activation, quantize_outputs
from tfray.generation.panels import PANEL, biases, whole_panels

SIDE = 16
"""Outputs of a tile, and groups of neighbouring inputs."""


def tiled(weight: Tensor) -> Tensor:
    """Return a weight (outputs, inputs) as tiles (outputs, inputs, group, output, input in a group), each of 1,024
    bytes; zeros fill up the last ones. A group has 32 bits: two halves or four bytes."""
    group = 4 // weight.element_size()
    weight = F.pad(weight, (0, -weight.shape[1] % (SIDE * group), 0, -weight.shape[0] % PANEL))
    return weight.unflatten(1, (-1, SIDE, group)).unflatten(0, (-1, SIDE)).permute(0, 2, 3, 1, 4).contiguous()


def sums_of_128(weight: Tensor) -> Tensor:
    """Return what each output's sum is too high by, negated, where states are bytes around 128."""
    return -128 * weight.sum(1, dtype=torch.int32)


class TiledLinear:
    """A product in bf16, or where `scale` holds the outputs' scales, in int8 with states quantized per row."""

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None, activation: Activation) -> None:
        name = "multiply_half" if scale is None else "multiply_bytes"
        self.multiply = getattr(native.products(weight.device), name, None)
        if self.multiply is None:
            raise RuntimeError("the processor has no such products")
        self.outputs, self.inputs = weight.shape
        self.activation: Activation = activation
        self.weight = tiled(weight)
        self.starts = self.scale = None
        if scale is not None:
            self.starts = whole_panels(sums_of_128(weight))
            self.scale = whole_panels(scale)
        self.bias = biases(bias, self.outputs)

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        rows, states = states.shape[0], states.contiguous()
        is_relu = self.activation == "relu"
        gives_halves = is_relu and self.scale is None  # for the product that follows
        dtype = torch.bfloat16 if gives_halves else torch.float32
        output = torch.empty(rows, self.outputs, dtype=dtype)
        kinds = states.dtype == torch.bfloat16, gives_halves, is_relu
        parts = states, self.weight, self.starts, self.scale, self.bias, residual, output
        native.call(self.multiply, *parts, *kinds, rows, self.inputs, self.outputs)
        return F.gelu(output) if self.activation == "gelu" else output


class TiledHalfLinear(TiledLinear):
    """The product in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(weight.bfloat16(), None, bias, activation)


class TiledByteLinear(TiledLinear):
    """The product in int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(*quantize_outputs(weight), bias, activation)
