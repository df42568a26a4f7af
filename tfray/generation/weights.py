"""A model's weights laid out for the engine's products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfray.generation import native
from tfray.generation.linear import Activation, Linear, PlainLinear, Precision
from tfray.generation.products import choose_linear
from tfray.model.architecture import Architecture
from tfray.model.attention import SelfAttention
from tfray.model.layers import DecoderLayer, EncoderLayer, FeedForward
from tfray.native import Argument

Norm = Callable[[Tensor], Tensor]
Kind = TypeVar("Kind", bound=nn.Module)


class Attention(NamedTuple):
    """Self-attention, or cross-attention (`inner` gives queries alone)."""

    inner: Linear
    output: Linear
    norm: Norm


class Layer(NamedTuple):
    """One layer of either stack."""

    self_attention: Attention
    cross_attention: Attention | None
    inner: Linear
    outer: Linear
    feed_forward_norm: Norm


class Packer:
    """Lays out weights in a precision on a device; queries are scaled beforehand by head_dim^-0.5."""

    def __init__(self, architecture: Architecture, precision: Precision, device: torch.device) -> None:
        self.device, self.scale = device, architecture.head_dim**-0.5
        self.kind = choose_linear(precision, device)
        # On a CPU, activations and norms are in fp32 whatever the products are in.
        self.dtype = torch.bfloat16 if precision == "bf16" and self.kind is PlainLinear else torch.float32

    def linear(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Linear:
        """Return a linear map."""
        ready = [None if part is None else part.detach().to(self.dtype) for part in (weight, bias)]
        return self.kind(*ready, activation)

    def norm(self, norm: nn.Module) -> Norm:
        """Return a norm."""
        if isinstance(norm, nn.Identity):
            return unchanged
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        weight, eps = norm.weight.detach().to(self.dtype), norm.eps
        shape = list(weight.shape)
        if isinstance(norm, nn.RMSNorm):
            return lambda states: F.rms_norm(states, shape, weight, eps)
        bias = norm.bias.detach().to(self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.float32:
            return KernelNorm(weight, bias, norm.eps)
        return lambda states: F.layer_norm(states, shape, weight, bias, norm.eps)

    def encoder_layer(self, layer: EncoderLayer) -> Layer:
        """Return a layer of the encoder."""
        attention = self.self_attention(layer.self_attention, layer.around_attention.norm)
        feed_forward = self.feed_forward(layer.feed_forward)
        return Layer(attention, None, *feed_forward, self.norm(layer.around_feed_forward.norm))

    def decoder_layer(self, layer: DecoderLayer) -> Layer:
        """Return a layer of the decoder; its keys and values of the memory are projected elsewhere."""
        attention = self.self_attention(layer.self_attention, layer.around_self_attention.norm)
        cross = layer.cross_attention
        packed_cross = Attention(
            self.linear(cross.query.weight * self.scale, cross.query.bias * self.scale),
            self.linear(cross.output.weight, cross.output.bias),
            self.norm(layer.around_cross_attention.norm),
        )
        feed_forward = self.feed_forward(layer.feed_forward)
        return Layer(attention, packed_cross, *feed_forward, self.norm(layer.around_feed_forward.norm))

    def self_attention(self, attention: SelfAttention, norm: nn.Module) -> Attention:
        joint = attention.query_key_value
        factors = torch.ones(len(joint.bias), dtype=torch.float32, device=self.device)
        factors[: len(factors) // 3] = self.scale
        return Attention(
            self.linear(joint.weight * factors[:, None], joint.bias * factors),
            self.linear(attention.output.weight, attention.output.bias),
            self.norm(norm),
        )

    def feed_forward(self, feed_forward: FeedForward) -> tuple[Linear, Linear]:
        inner, outer, activation = feed_forward.inner, feed_forward.output, feed_forward.activation
        last = self.linear(outer.weight, outer.bias)
        if activation != "swiglu":
            return self.linear(inner.weight, inner.bias, "relu" if activation == "relu" else "gelu"), last
        both = self.linear(inner.weight, inner.bias)

        def gated(states: Tensor, residual: Tensor | None = None) -> Tensor:
            assert residual is None, "what a gate multiplies is added to nothing"
            gate, value = both(states).chunk(2, dim=-1)
            return F.silu(gate) * value

        return gated, last


def layers_of(stack: nn.ModuleList, kind: type[Kind]) -> Iterator[Kind]:
    """Yield a stack's layers, which are of this kind."""
    for layer in stack:
        assert isinstance(layer, kind)
        yield layer


def unchanged(states: Tensor) -> Tensor:
    """Return states as they are, where there is no norm."""
    return states


class KernelNorm(NamedTuple):
    """LayerNorm in fp32 on a CPU, by our kernel where it can be had."""

    weight: Tensor
    bias: Tensor
    eps: float

    def arguments(self, states: Tensor, output: Tensor, rows: Argument) -> list[Argument]:
        """Return what the kernel is called with; output may be where states are."""
        return [states, self.weight, self.bias, self.eps, output, rows, len(self.weight)]

    def __call__(self, states: Tensor) -> Tensor:
        kernels = native.kernels(states.device)
        if kernels is None:
            return F.layer_norm(states, tuple(self.weight.shape), self.weight, self.bias, self.eps)
        output = torch.empty_like(states)
        native.call(kernels.normalize_rows, *self.arguments(states, output, len(states)))
        return output
