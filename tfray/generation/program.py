"""A step of decoding as a list of kernel calls, made once for a cache.

Between two kernels a step in Python looks up what it needs, makes room for the result and hands over a dozen
arguments: some ten microseconds, forty times a step. A program has its memory and its arguments ready; only what
changes from step to step, how many rows there are, is read anew. The kernels are those of `Network.step`, and so are
the results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tfray.generation import native
from tfray.generation.cache import round_up
from tfray.generation.linear import Linear
from tfray.generation.network import Network
from tfray.generation.paged import PagedCache
from tfray.generation.panels import KernelLinear
from tfray.generation.weights import Attention, KernelNorm, Layer, Norm, unchanged
from tfray.native import Argument


def can_be_program(network: Network) -> bool:
    """Say whether kernels do all of a step's work, where they serve its cache; a network's products are of one kind."""
    shape = network.architecture
    is_plain = shape.activation == "relu" and shape.norm == "layer" and shape.positions == "sinusoidal"
    return is_plain and isinstance(network.output, KernelLinear)


class Program:
    """Network.step over one cache of the kernels."""

    def __init__(self, network: Network, cache: PagedCache) -> None:
        self.network, self.cache = network, cache
        self.ids, self.rows, self.hypotheses = ctypes.c_void_p(), ctypes.c_int64(), ctypes.c_int64()
        self.calls: list[Callable[[], None]] = []
        most, size = cache.shape.slots * cache.shape.width, network.architecture.d_model
        # The same memory for all layers: it stays in the processor's cache.
        self.hidden, self.states, self.queries, self.gathered = network.embedding.new_empty(4, most, size)
        self.joint = self.hidden.new_empty(most, 3 * size)
        self.inner = kernel_linear(network.decoder[0].inner).output(most)
        self.logits = kernel_linear(network.output).output(most)
        self.no_weights = self.hidden.new_empty(0)
        network.reach(round_up(cache.shape.target))
        self.table, _ = network.tables
        self.embed()
        for number, layer in enumerate(network.decoder):
            assert layer.cross_attention is not None
            self.attend_past(number, layer.self_attention)
            self.attend_memory(number, layer.cross_attention)
            self.feed_forward(layer)
        self.multiply(network.output, self.normalize(network.decoder_norm, self.states), self.logits)

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what Network.step does; the next step writes where the logits are."""
        rows, width = ids.shape
        assert ids.is_contiguous() and ids.numel() <= len(self.hidden), "kernels ask no questions"
        self.cache.start_step(rows)
        self.ids.value, self.rows.value, self.hypotheses.value = ids.data_ptr(), rows, rows * width
        for call in self.calls:
            call()
        return self.logits[: rows * width], self.no_weights

    def add(self, kernel: Any, *arguments: Argument) -> None:
        """Let a kernel be called next."""
        self.calls.append(native.prepared(kernel, *arguments))

    def embed(self) -> None:
        network, cache = self.network, self.cache
        parts = self.ids, cache.positions, network.embedding, self.table, self.hidden
        self.add(self.kernels.embed_tokens, *parts, self.rows, cache.shape.width, self.hidden.shape[1])

    def attend_past(self, number: int, attention: Attention) -> None:
        self.multiply(attention.inner, self.before(attention.norm), self.joint)
        arguments = self.cache.past_arguments(number, self.joint, self.gathered, self.rows)
        self.add(self.cache.kernel_of_past, *arguments)
        self.after(attention.output, self.gathered, attention.norm)

    def attend_memory(self, number: int, attention: Attention) -> None:
        self.multiply(attention.inner, self.before(attention.norm), self.queries)
        arguments = self.cache.memory_arguments(number, self.queries, self.gathered, self.rows)
        self.add(self.cache.kernel_of_memory, *arguments)
        self.after(attention.output, self.gathered, attention.norm)

    def feed_forward(self, layer: Layer) -> None:
        self.multiply(layer.inner, self.before(layer.feed_forward_norm), self.inner)
        self.after(layer.outer, self.inner, layer.feed_forward_norm)

    def before(self, norm: Norm) -> Tensor:
        """Return what a sub-layer reads."""
        return self.normalize(norm, self.states) if self.network.is_pre_norm else self.hidden

    def after(self, last: Linear, states: Tensor, norm: Norm) -> None:
        """Add a sub-layer's last product to its input."""
        self.multiply(last, states, self.hidden, residual=self.hidden)
        if not self.network.is_pre_norm:
            self.normalize(norm, self.hidden)

    def normalize(self, norm: Norm, output: Tensor) -> Tensor:
        """Return where the hidden states are, normalized where there is a norm."""
        if norm is unchanged:
            return self.hidden
        assert isinstance(norm, KernelNorm)
        self.add(self.kernels.normalize_rows, *norm.arguments(self.hidden, output, self.hypotheses))
        return output

    def multiply(self, linear: Linear, states: Tensor, output: Tensor, residual: Tensor | None = None) -> None:
        own = kernel_linear(linear)
        self.add(own.multiply, *own.arguments(states, residual, output, self.hypotheses))

    @property
    def kernels(self) -> ctypes.CDLL:
        kernels = self.network.kernels()
        assert kernels is not None
        return kernels


def kernel_linear(linear: Linear) -> KernelLinear:
    """Return a linear map as what it is where `can_be_program` holds."""
    assert isinstance(linear, KernelLinear)
    return linear
