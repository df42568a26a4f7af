"""Settings of the model and of the data order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tfray.config.rules import check_types, require, text_keys


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


@dataclass(frozen=True, kw_only=True)
class BatchesConfig:
    """The planned order of the data: pools -> steps x lanes of micro-batches."""

    max_tokens: int = 4096
    """Padded tokens in one micro-batch at most: rows x longest side."""
    lanes: int = 2
    """Micro-batches in one step, whoever runs them; the number of workers must divide it."""
    pool_examples: int = 262_144
    """Examples shuffled and bucketed together; bounds the feed's memory."""
    seed: int = 1
    """Seed of the data order."""
    temperature: float = 1.0
    """Mixing of several corpora: 1 takes each as large as it is, larger values even the sizes out
    (Arivazhagan et al. 2019: a corpus of n pairs counts as n^(1/temperature)); the corpora's weights
    come on top."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a corpus by its name, in place of the one that it was tokenized with."""
    packing: bool = False
    """Lay several pairs into one row, each seeing only itself: less padding and rows of one width, for GPUs. Rows hold
    the longest pair of their pool, and 128 tokens at least; max_tokens is then rows x width."""
    bpe_dropout: float = 0.0
    """Probability with which a merge is skipped when training texts are segmented (Provilkov et al. 2020),
    anew in each epoch; 0 to below 1. Needs a BPE tokenizer."""

    def __post_init__(self) -> None:
        check_types("batches", self)
        object.__setattr__(self, "weights", text_keys(self.weights))
        require(self.temperature > 0, "batches.temperature", self.temperature, "must be positive")
        require(0 <= self.bpe_dropout < 1, "batches.bpe_dropout", self.bpe_dropout, "must be at least 0 and below 1")
        for name, weight in self.weights.items():
            require(weight > 0, f"batches.weights.{name}", weight, "must be positive")
        for name in ("max_tokens", "lanes", "pool_examples"):
            require(getattr(self, name) > 0, f"batches.{name}", getattr(self, name), "must be positive")
        require(self.seed >= 0, "batches.seed", self.seed, "must not be negative")

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers that may share out the lanes: their divisors."""
        return [count for count in range(1, self.lanes + 1) if self.lanes % count == 0]
