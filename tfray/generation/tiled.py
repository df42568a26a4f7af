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
from tfray.generation.panels import PANEL, KernelLinear, whole_panels

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


class TiledHalfLinear(KernelLinear):
    """The product in bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(native.products(weight.device), "multiply_half", weight.shape, bias, activation)
        self.weights = tiled(weight.bfloat16()), None, None

    def output(self, rows: int) -> Tensor:
        """Return halves for the product that follows an activation, else floats."""
        dtype = torch.bfloat16 if self.activation == "relu" else torch.float32
        return torch.empty(rows, self.outputs, dtype=dtype, device="cpu")

    def kinds(self, states: Tensor, output: Tensor) -> tuple[bool, ...]:
        return states.dtype == torch.bfloat16, output.dtype == torch.bfloat16


class TiledByteLinear(KernelLinear):
    """The product in int8, with states quantized per row."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(native.products(weight.device), "multiply_bytes", weight.shape, bias, activation)
        whole, scale = quantize_outputs(weight)
        self.weights = tiled(whole), whole_panels(sums_of_128(whole)), whole_panels(scale)

    def kinds(self, states: Tensor, output: Tensor) -> tuple[bool, ...]:
        return False, False
