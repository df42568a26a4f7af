"""What a machine can do at most, and what a search needs at least: the share of the limit that an engine reaches.

The limits are measured, by a copy and by a large product of matrices; the need is counted: every step reads the
decoder's weights and all keys and values so far once, and every token costs its products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from tfray.model.architecture import Architecture

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS = 0.5


class Rates(NamedTuple):
    """Of a device, or of several processes together."""

    bytes: float
    """Read or written in a second."""
    operations: float
    """Floating-point operations in a second."""


class Need(NamedTuple):
    """Of one run of a search."""

    bytes: float
    operations: float

    def times(self, count: int) -> Need:
        """Return what so many such runs need."""
        return Need(self.bytes * count, self.operations * count)

    def shares(self, seconds: float, rates: Rates) -> tuple[float, float]:
        """Return the shares of the memory bandwidth and of the arithmetic that a run of so many seconds used."""
        return self.bytes / seconds / rates.bytes, self.operations / seconds / rates.operations


def measure_rates(device: str, precision: str) -> Rates:
    """Return what this process reaches on a device."""
    size, numbers = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    one = torch.randn(size, size, device=device).to(DTYPES[precision])
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    copies = repeat(lambda: target.copy_(source), device)
    products = repeat(lambda: one @ one, device)
    return Rates(copies * 2 * source.nbytes, products * 2 * size**3)


def repeat(work: Callable[[], object], device: str) -> float:
    """Return how often a second work can be done."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    wait()
    best, ended = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < ended:
        began = time.perf_counter()
        for _ in range(5):
            work()
        wait()
        best = min(best, time.perf_counter() - began)  # others may be at work on the machine
    return 5 / best


def need_of(shape: Architecture, rows: int, source: int, output: int, beam: int, batch: int, element: int) -> Need:
    """Return what decoding rows of equal lengths needs, `batch` of them at a time; element: bytes of a number."""
    width, inner = shape.d_model, shape.d_ff
    feed_forward = (3 if shape.activation == "swiglu" else 2) * width * inner
    encoder = shape.encoder_layers * (4 * width**2 + feed_forward)  # parameters
    memory = shape.decoder_layers * 2 * width**2  # that make keys and values of the source
    decoder = shape.decoder_layers * (6 * width**2 + feed_forward) + width * shape.vocab_size
    batches = -(-rows // batch)
    past = output * (output + 1) // 2  # positions that all steps of a hypothesis look back at
    read = (
        batches * (output * decoder + encoder + memory)
        + rows * shape.decoder_layers * 2 * width * (beam * past + output * source)  # keys and values
    )
    operations = rows * source * (2 * (encoder + memory) + shape.encoder_layers * 4 * width * source) + rows * beam * (
        output * 2 * decoder + shape.decoder_layers * 4 * width * (past + output * source)
    )
    return Need(float(read * element), float(operations))
