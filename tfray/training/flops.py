"""Floating-point operations of a step by the architecture, and the most that a device does in a second.

Counted as in PaLM (Chowdhery et al. 2022, appendix B): multiplications and additions of the matrix products of the
forward pass, attention over all positions included, times three for forward and backward; no recomputation. Here on
real tokens alone, pair by pair: what is spent on padding counts as lost.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from tfray.batches.batch import Batch
from tfray.model.architecture import Architecture
from tfray.model.precision import name_of
from tfray.tokens.special import EOS_ID, PAD_ID

DENSE_BF16 = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "B100": 1.75e15,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense products in bf16 (V100, T4: fp16) by a part of the device's name, of NVIDIA's data sheets; without sparsity."""
MEASURED_SIZE, MEASURED_SECONDS = 1024, 0.3


class Peak(NamedTuple):
    """The rate that MFU relates to."""

    flops_per_second: float
    source: str
    """How it is known, for the log."""


def batch_flops(architecture: Architecture, batch: Batch, passes: int = 1) -> float:
    """Return the operations of forward and backward over a micro-batch's real tokens; R-Drop takes two passes."""
    source, target = pair_lengths(batch.source_ids), pair_lengths(batch.label_ids)
    return 3.0 * passes * forward_flops(architecture, source, target)


def pair_lengths(ids: Tensor) -> Tensor:
    """Return the tokens of each sentence, eos included, row by row; packed rows hold several."""
    tokens = ids[ids != PAD_ID]
    ends = (tokens == EOS_ID).nonzero().flatten()
    return torch.diff(ends, prepend=ends.new_tensor([-1])).double()


def forward_flops(architecture: Architecture, source: Tensor, target: Tensor) -> float:
    """Return the operations of the matrix products of one forward pass over pairs of these lengths."""
    return layer_flops(architecture, source, target) + output_flops(architecture, float(target.sum()))


def output_flops(architecture: Architecture, tokens: float) -> float:
    """Return the operations of so many tokens' logits."""
    return 2 * architecture.d_model * architecture.vocab_size * tokens


def layer_flops(architecture: Architecture, source: Tensor, target: Tensor) -> float:
    """Return the operations of the layers' matrix products."""
    d = architecture.d_model
    feed_forward = (6 if architecture.activation == "swiglu" else 4) * d * architecture.d_ff
    self_attention = 8 * d * d  # queries, keys, values and output of a token
    sources, targets = float(source.sum()), float(target.sum())
    encoder = sources * (self_attention + feed_forward) + 4 * d * float((source**2).sum())
    decoder = (
        targets * (self_attention + 4 * d * d + feed_forward)
        + sources * 4 * d * d
        + 4 * d * float((target**2).sum() + (source * target).sum())
    )
    return architecture.encoder_layers * encoder + architecture.decoder_layers * decoder


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return a device's known peak in bf16, or the matrix rate that it is measured to have in `dtype`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = known_peak(name)
        if known:
            return Peak(known, f"{name}, dense bf16")
    rate = measured_rate(device, dtype)
    return Peak(rate, f"{rate / 1e9:,.0f} GFLOP/s measured in {name_of(dtype)}")


def known_peak(name: str) -> float | None:
    """Return the peak of a device by its name, or None where it is not known."""
    words = name.replace("-", " ").split()
    if "MIG" in words:  # a slice of a device, which does a part of what that does
        return None
    for part, peak in DENSE_BF16.items():
        if all(word in words for word in part.split()):
            return peak
    return None


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of square matrix products, the best of those that fit into some tenths of a
    second."""
    left = torch.randn(MEASURED_SIZE, MEASURED_SIZE, device=device, generator=torch.Generator(device).manual_seed(1))
    left = left.to(dtype)
    best, begun = float("inf"), time.monotonic()
    while time.monotonic() - begun < MEASURED_SECONDS:
        start = time.perf_counter()
        product = left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        del product
    return 2 * MEASURED_SIZE**3 / best
