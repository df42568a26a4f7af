"""The encoder-decoder Transformer of "Attention Is All You Need", step by step by its names."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfray.model.architecture import Architecture
from tfray.model.attention import same_segment
from tfray.model.dropout import Dropout
from tfray.model.layers import DecoderLayer, EncoderLayer, make_norm
from tfray.model.positions import positions_in, sinusoids


class Memory(NamedTuple):
    """What the encoder hands the decoder."""

    hidden: Tensor  # (batch, source, d_model)
    mask: Tensor  # (batch, source), True where there is a token
    segments: Tensor | None = None  # (batch, source), where rows are packed


class Embedding(nn.Module):
    """Token embedding plus positional encoding, section 3.4 and 3.5 of the paper."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.d_model = architecture.d_model
        self.is_sinusoidal = architecture.positions == "sinusoidal"
        self.tokens = nn.Embedding(architecture.vocab_size, architecture.d_model, architecture.pad_id)
        self.dropout = Dropout(architecture.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return (batch, length, d_model) for ids at positions 0, 1, ..., or the ones given."""
        hidden = self.tokens(ids) * math.sqrt(self.d_model)
        if self.is_sinusoidal:
            table = sinusoids(ids.shape[1], self.d_model, hidden.device).to(hidden.dtype)
            hidden = hidden + (table if positions is None else table[positions])
        return self.dropout(hidden)


class Transformer(nn.Module):
    """Read a source, then predict a target token by token."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embedding = Embedding(architecture)
        self.encoder = nn.ModuleList(EncoderLayer(architecture) for _ in range(architecture.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(architecture) for _ in range(architecture.decoder_layers))
        is_pre_norm = architecture.norm_position == "pre"
        self.encoder_norm = make_norm(architecture) if is_pre_norm else nn.Identity()
        self.decoder_norm = make_norm(architecture) if is_pre_norm else nn.Identity()
        self.apply(initialize)

    @property
    def output_weight(self) -> Tensor:
        """The output layer's weight, tied to the embedding, (vocab, d_model)."""
        return self.embedding.tokens.weight

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Return next-token logits for every target position, (batch, target, vocab)."""
        return self.project(self.decode(target_ids, self.encode(source_ids)))

    def encode(self, source_ids: Tensor, segments: Tensor | None = None) -> Memory:
        """Return the memory of a padded source; in packed rows, `segments` says which of their sources a token is of
        (from 1; 0 is padding)."""
        mask = source_ids != self.architecture.pad_id
        positions = None if segments is None else positions_in(segments)
        visible = mask if segments is None else same_segment(segments, segments)
        hidden = self.embedding(source_ids, positions=positions)
        for layer in self.encoder:
            hidden = layer(hidden, visible, positions)
        return Memory(self.encoder_norm(hidden), mask, segments)

    def project_memory(self, memory: Memory) -> list[tuple[Tensor, Tensor]]:
        """Return every decoder layer's keys and values of the memory."""
        return [layer.cross_attention.project(memory.hidden) for layer in self.decoder]  # type: ignore[union-attr]

    def decode(self, target_ids: Tensor, memory: Memory, segments: Tensor | None = None) -> Tensor:
        """Return the decoder's hidden state at every target position, (batch, target, d_model); in packed rows a
        target's segment is that of its source."""
        if segments is None or memory.segments is None:
            return self.run_decoder(self.embedding(target_ids), self.project_memory(memory), memory.mask)
        positions = positions_in(segments)
        hidden = self.embedding(target_ids, positions=positions)
        own_mask = same_segment(segments, segments).tril()
        visible = same_segment(segments, memory.segments)
        return self.run_decoder(hidden, self.project_memory(memory), visible, own_mask, positions)

    def run_decoder(
        self,
        hidden: Tensor,
        memory_keys_values: list[tuple[Tensor, Tensor]],
        memory_mask: Tensor,
        own_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return embedded target positions after the decoder stack."""
        for layer, keys_values in zip(self.decoder, memory_keys_values, strict=True):
            hidden = layer(hidden, keys_values, memory_mask, own_mask, positions)
        return self.decoder_norm(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits over the vocabulary."""
        return hidden @ self.output_weight.T


def initialize(module: nn.Module) -> None:
    """Set weights so that activations keep their scale: Xavier for linear maps, d_model^-0.5 for tokens."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
