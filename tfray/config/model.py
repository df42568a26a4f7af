"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tfray.config.rules import check_types, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Transformer: a preset, and what departs from it."""

    preset: Literal["tiny", "small", "base", "big"] = "small"
    """Sizes as (d_model, heads, d_ff, layers a side): tiny (128, 4, 512, 2), small (256, 4, 1024, 3),
    base (512, 8, 2048, 6), big (1024, 16, 4096, 6)."""
    d_model: int | None = None
    """Width of the hidden states. Default: the preset's."""
    num_heads: int | None = None
    """Attention heads; must divide d_model. Default: the preset's."""
    d_ff: int | None = None
    """Inner width of the feed-forward layers. Default: the preset's."""
    encoder_layers: int | None = None
    """Layers of the encoder. Default: the preset's."""
    decoder_layers: int | None = None
    """Layers of the decoder. Default: the preset's."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Non-linearity of the feed-forward layers."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalization. layer: LayerNorm; rms: RMSNorm."""
    norm_position: Literal["pre", "post"] = "pre"
    """Where to normalize. pre: before each sub-layer (stable); post: after its residual (as in the 2017 paper)."""
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"
    """Positions. sinusoidal: added to the embedding; rotary: rotated into queries and keys of self-attention."""
    dropout: float = 0.1
    """Share of activations dropped while training, 0 to below 1."""

    def __post_init__(self) -> None:
        check_types("model", self)
        for name in ("d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name}", value, "must be positive")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and below 1")
