"""Linear maps by torch and its library, oneDNN, with their weights laid out once.

On a CPU oneDNN's blocked layout is used: it is faster than a plain product, and a row's result does not
depend on how many rows it is multiplied with, to the last bit (a plain product takes another way for up
to three rows). int8 quantizes weights per output and activations per row, at the time of the product.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["fp32", "bf16", "int8"]
Activation = Literal["none", "relu", "gelu"]
HINT_ROWS = 64  # a batch to choose the layout for
LEAST_STEP = 16


class Linear(Protocol):
    """y = activation(x W^T + b) + residual."""

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return (rows, outputs) of (rows, inputs)."""
        ...


def activate(states: Tensor, activation: Activation) -> Tensor:
    """Return the activation's values."""
    if activation == "relu":
        return F.relu(states)
    return F.gelu(states) if activation == "gelu" else states


def few_kinds(rows: int) -> int:
    """Return a number of rows, at least so many, of few kinds.

    oneDNN makes kernels for every number of rows, and keeps about a megabyte of each: a job that saw thousands of
    numbers would take gigabytes.
    """
    step = max(LEAST_STEP, 1 << max(0, rows.bit_length() - 4))  # an eighth at most
    return -(-rows // step) * step


def filled_up(states: Tensor) -> Tensor:
    """Return (rows, width) with rows of zeros after them, up to one of few numbers."""
    missing = few_kinds(len(states)) - len(states)
    return F.pad(states, (0, 0, 0, missing)) if missing else states


class PlainLinear:
    """The library's product."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.weight, self.bias = weight, bias
        self.activation: Activation = activation

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        output = activate(F.linear(states, self.weight, self.bias), self.activation)
        return output if residual is None else residual + output


class BlockedLinear:
    """oneDNN's product with blocked weights, activation and residual fused."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), HINT_ROWS)
        self.bias, self.activation = bias, activation

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        rows, states = len(states), filled_up(states)
        if residual is not None:
            residual = filled_up(residual)
            return torch.ops.mkldnn._linear_pointwise.binary(states, residual, self.weight, self.bias, "add")[:rows]
        algorithm = "none" if self.activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, self.activation, [], algorithm)[:rows]


class HalfLinear:
    """oneDNN's product in bf16; inputs and outputs are fp32, and so are sums of residuals.

    What surrounds the products is faster in fp32 on a CPU. Only between two products, after an
    activation, states stay in bf16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        half = None if bias is None else bias.bfloat16()
        self.product = BlockedLinear(weight.bfloat16(), half, activation)

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        output = self.product(states.bfloat16())
        if residual is not None:
            return output.float().add_(residual)
        return output if self.product.activation != "none" else output.float()


class QuantizedLinear:
    """oneDNN's product of 8-bit integers; inputs and outputs are fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        whole, self.scale = quantize_outputs(weight)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, [HINT_ROWS, weight.shape[1]])
        self.zero = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self.bias = None if bias is None else bias.float()
        self.activation: Activation = activation

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        whole, scale = quantize_rows(states)
        whole = filled_up(whole)
        product = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )[: len(states)]
        if residual is not None:
            output = torch.addcmul(residual, product, scale)
            return output if self.bias is None else output.add_(self.bias)
        if self.bias is None:
            return product.mul_(scale)
        return activate(torch.addcmul(self.bias, product, scale), self.activation)


def quantize_outputs(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (outputs, inputs) as bytes, and each output's scale, (outputs,)."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantize_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, inputs) as bytes around 128, and each row's scale, (rows, 1)."""
    scale = torch.linalg.vector_norm(states, float("inf"), -1, keepdim=True).clamp_min_(1e-30).div_(127)
    return torch.addcdiv(states.new_tensor(128.5), states, scale).to(torch.uint8), scale
