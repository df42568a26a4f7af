"""Linear maps by kernels of our own: product, bias, activation and residual in one pass.

In fp32 as fast as oneDNN's where that is at its best, faster for a batch's hundred rows, and without its kernels for
each number of rows, which it makes at their first use and keeps. In int8 for processors that have no dot products of
bytes: sums of two products of 16 bits each, which AVX2 has, are exact and twice as many at a time as those of fp32.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.generation import native
from tfray.generation.linear import Activation, quantize_outputs
from tfray.native import Argument

PANEL = 32
"""Outputs that the kernels work on at a time at most."""


def whole_panels(values: Tensor) -> Tensor:
    """Return a value for each output, and zeros after them up to a whole panel."""
    return F.pad(values, (0, -len(values) % PANEL))


def in_panels(weight: Tensor, width: int) -> Tensor:
    """Return a weight (outputs, inputs) as panels, (outputs / width, inputs, width); zeros fill up the last ones."""
    weight = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    return weight.unflatten(0, (-1, width)).transpose(1, 2).contiguous()


def in_pairs(weight: Tensor, width: int) -> Tensor:
    """Return panels of inputs in twos, (outputs / width, inputs / 2, width, 2); zeros fill up the last ones."""
    weight = F.pad(weight, (0, weight.shape[1] % 2, 0, -len(weight) % PANEL))
    return weight.unflatten(1, (-1, 2)).unflatten(0, (-1, width)).transpose(1, 2).contiguous()


class KernelLinear:
    """A product by one of our kernels; raises RuntimeError where the processor does not have it."""

    weights: tuple[Tensor | None, ...]
    """The weight and what belongs to it, as the kernel takes them."""

    def __init__(
        self, kernels: CDLL | None, name: str, shape: torch.Size, bias: Tensor | None, activation: Activation
    ) -> None:
        self.multiply = getattr(kernels, name, None)
        if self.multiply is None:
            raise RuntimeError(f"no kernel {name}")
        self.outputs, self.inputs = shape
        none = torch.zeros(self.outputs, dtype=torch.float32, device="cpu")
        self.bias = whole_panels(none if bias is None else bias.float())
        self.activation: Activation = activation

    def output(self, rows: int) -> Tensor:
        """Return memory for what comes out."""
        return torch.empty(rows, self.outputs, dtype=torch.float32, device="cpu")

    def kinds(self, states: Tensor, output: Tensor) -> tuple[bool, ...]:
        """Return what the kernel is told of the types of what goes in and comes out."""
        return ()

    def arguments(self, states: Tensor, residual: Tensor | None, output: Tensor, rows: Argument) -> list[Argument]:
        """Return what the kernel is called with; output may be where the residual is."""
        kinds = *self.kinds(states, output), self.activation == "relu"
        return [states, *self.weights, self.bias, residual, output, *kinds, rows, self.inputs, self.outputs]

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        rows, states = states.shape[0], states.contiguous()
        output = self.output(rows)
        native.call(self.multiply, *self.arguments(states, residual, output, rows))
        return F.gelu(output) if self.activation == "gelu" else output


class PanelLinear(KernelLinear):
    """The product in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(native.kernels(weight.device), "multiply_float", weight.shape, bias, activation)
        self.weights = (in_panels(weight.float(), native.panel()),)


class PanelByteLinear(KernelLinear):
    """The product in int8, with states quantized per row."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__(native.kernels(weight.device), "multiply_words", weight.shape, bias, activation)
        whole, scale = quantize_outputs(weight)
        self.weights = in_pairs(whole, native.panel()), whole_panels(scale)
