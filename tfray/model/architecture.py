"""The numbers that make a Transformer; presets and their departures resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tfray.config import ModelConfig
from tfray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that the network's shape and arithmetic follow from; stored in config.json."""

    d_model: int
    num_heads: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    vocab_size: int = 0
    max_length: int = 0
    """Longest source or target in tokens that the model was trained for."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"
    dropout: float = 0.1
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            fitting = [heads for heads in range(1, self.d_model) if self.d_model % (2 * heads) == 0]
            usual = min(fitting, key=lambda heads: abs(heads - self.d_model / 64), default=None)
            remedy = f"try {usual} heads" if usual else f"try d_model={self.d_model + 1}"
            raise InputError(
                f"model.num_heads={self.num_heads} must divide model.d_model={self.d_model} into heads of even "
                f"width; {remedy}"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


PRESETS = {
    "tiny": Architecture(d_model=128, num_heads=4, d_ff=512, encoder_layers=2, decoder_layers=2),
    "small": Architecture(d_model=256, num_heads=4, d_ff=1024, encoder_layers=3, decoder_layers=3),
    "base": Architecture(d_model=512, num_heads=8, d_ff=2048, encoder_layers=6, decoder_layers=6),
    "big": Architecture(d_model=1024, num_heads=16, d_ff=4096, encoder_layers=6, decoder_layers=6),
}


def resolve(config: ModelConfig, vocab_size: int, max_length: int) -> Architecture:
    """Return a preset's architecture with the settings that depart from it."""
    sizes = ("d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers")
    changed = {name: getattr(config, name) for name in sizes if getattr(config, name) is not None}
    return replace(
        PRESETS[config.preset],
        **changed,
        vocab_size=vocab_size,
        max_length=max_length,
        activation=config.activation,
        norm=config.norm,
        norm_position=config.norm_position,
        positions=config.positions,
        dropout=config.dropout,
    )
