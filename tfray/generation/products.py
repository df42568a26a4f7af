"""Which kind of linear map serves a precision on a device: the fastest that gives the right results there."""

from __future__ import annotations

import logging

import torch

from tfray.generation.linear import BlockedLinear, HalfLinear, PlainLinear, Precision, QuantizedLinear
from tfray.generation.panels import PanelByteLinear, PanelLinear
from tfray.generation.tiled import TiledByteLinear, TiledHalfLinear

logger = logging.getLogger(__name__)

KINDS: dict[Precision, list[type]] = {
    "fp32": [PanelLinear, BlockedLinear],
    "bf16": [TiledHalfLinear, HalfLinear],
    "int8": [TiledByteLinear, PanelByteLinear, QuantizedLinear],
}
"""The fastest first."""
EXACT = {PanelLinear, BlockedLinear, PlainLinear}


def works(kind: type) -> bool:
    """Say whether a kind of linear map runs on this processor and gives what the plain one gives.

    Also where all numbers are as large as they can be: before VNNI, x86 adds products of bytes in 16 bits, which
    are too few.
    """
    weight, bias, states = (
        torch.linspace(-most, most, rows, dtype=torch.float32, device="cpu")
        for most, rows in ((1, 24), (2, 24), (1, 6))
    )
    weight, states = (part[:, None].expand(-1, 16).contiguous() for part in (weight, states))
    try:
        found, expected = kind(weight, bias, "relu")(states), PlainLinear(weight, bias, "relu")(states)
        return bool((found.float() - expected).abs().max() < 0.3)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def choose_linear(precision: Precision, device: torch.device) -> type:
    """Return the kind of linear map for a precision on a device, by what works there: on a CPU without products of
    halves or bytes, those of fp32."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        wanted = KINDS[precision]
        kind = next(filter(works, [*wanted, *KINDS["fp32"]]), PlainLinear)
        if kind not in wanted:
            logger.warning("this processor has no sound products in %s: generation computes in fp32", precision)
        return kind
    return PlainLinear
