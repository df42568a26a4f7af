"""The Transformer as the engine runs it: weights packed once, one position at a time or all at once.

The same numbers as `tfray.model.transformer.Transformer`, without anything that training needs. Hidden
states are two-dimensional, (rows x positions, d_model), as the products want them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.config import GenerationConfig
from tfray.generation import native
from tfray.generation.attention import attend, attend_sources, attend_targets, bias_of
from tfray.generation.autocast import without_autocast
from tfray.generation.cache import SlotCache, round_up
from tfray.generation.linear import Linear, Precision
from tfray.generation.paged import in_blocks
from tfray.generation.products import EXACT
from tfray.generation.weights import Attention, Layer, Norm, Packer, layers_of
from tfray.model.layers import DecoderLayer, EncoderLayer
from tfray.model.positions import angles_of, sinusoids
from tfray.model.transformer import Transformer
from tfray.tokens.special import PAD_ID


class Network:
    """A model ready to run in one precision on one device."""

    def __init__(self, model: Transformer, precision: Precision = "fp32") -> None:
        self.architecture = architecture = model.architecture
        self.device = model.output_weight.device
        packer = Packer(architecture, precision, self.device)
        self.is_exact = packer.kind in EXACT
        self.dtype = packer.dtype
        self.is_pre_norm = architecture.norm_position == "pre"
        self.is_rotary = architecture.positions == "rotary"
        self.heads, self.head_dim = architecture.num_heads, architecture.head_dim
        self.embedding = (model.output_weight.detach().float() * math.sqrt(architecture.d_model)).to(self.dtype)
        self.output = packer.linear(model.output_weight, None)
        self.encoder = [packer.encoder_layer(layer) for layer in layers_of(model.encoder, EncoderLayer)]
        decoder = list(layers_of(model.decoder, DecoderLayer))
        self.decoder = [packer.decoder_layer(layer) for layer in decoder]
        self.encoder_norm, self.decoder_norm = packer.norm(model.encoder_norm), packer.norm(model.decoder_norm)
        cross = [layer.cross_attention.key_value for layer in decoder]
        self.memory_keys_values = packer.linear(
            torch.cat([linear.weight for linear in cross]), torch.cat([linear.bias for linear in cross])
        )
        self.shortages = 0
        """How often memory ran out, and fewer rows were worked on at a time."""
        self.models_here = 1
        """How many models share the device's memory, this one counted."""
        self.graphs_pay: bool | None = None
        """Whether steps are sooner done as CUDA graphs; None until it was measured."""
        self.tables = self.position_tables(max(64, architecture.max_length))

    def position_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the sinusoids (length, d_model), or the rotations' cosines and sines (length, head_dim / 2)."""
        if not self.is_rotary:
            table = sinusoids(length, self.architecture.d_model).to(self.device, self.dtype)
            return table, table
        angles = angles_of(length, self.head_dim)
        return angles.cos().to(self.device, self.dtype), angles.sin().to(self.device, self.dtype)

    def kernels(self) -> ctypes.CDLL | None:
        """Return the compiled kernels where they serve this network."""
        return native.kernels(self.device) if self.dtype == torch.float32 else None

    def cache_kernels(self, config: GenerationConfig) -> ctypes.CDLL | None:
        """Return the kernels where they serve a search's cache; they do not keep the attention that coverage needs."""
        return None if config.coverage_penalty else self.kernels()

    def cache_dtype(self, kernels: ctypes.CDLL | None) -> torch.dtype:
        """Return what keys and values are kept in: halves where products are not exact anyhow, and kernels know the
        size of a head."""
        has_halves = kernels is not None and not self.is_exact and self.head_dim % (2 * native.lanes()) == 0
        return torch.bfloat16 if has_halves else self.dtype

    def reach(self, length: int) -> None:
        """Make sure that positions below a length have their place in the tables."""
        if length > len(self.tables[0]):
            self.tables = self.position_tables(2 * length)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return (count, d_model) for flat ids at their positions."""
        hidden = F.embedding(ids, self.embedding)
        return hidden if self.is_rotary else hidden + F.embedding(positions, self.tables[0])

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return (count, heads, head_dim) rotated by positions, (count,)."""
        cosine, sine = (table[positions][:, None] for table in self.tables)
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    def rotated(self, joint: Tensor, positions: Tensor) -> Tensor:
        """Return queries, keys and values (count, 3 x d_model), the first two rotated where positions are."""
        if not self.is_rotary:
            return joint
        query, keys, values = joint.unflatten(-1, (3, self.heads, self.head_dim)).unbind(1)
        return torch.stack([self.rotate(query, positions), self.rotate(keys, positions), values], dim=1).flatten(1)

    def around(self, hidden: Tensor, norm: Norm, sublayer: Callable[[Tensor], tuple[Linear, Tensor]]) -> Tensor:
        """Return a sub-layer's output added to its input; the sub-layer leaves its last product to do."""
        if self.is_pre_norm:
            linear, states = sublayer(norm(hidden))
            return linear(states, hidden)
        linear, states = sublayer(hidden)
        return norm(linear(states, hidden))

    def feed_forward(self, layer: Layer, hidden: Tensor) -> Tensor:
        return self.around(hidden, layer.feed_forward_norm, lambda states: (layer.outer, layer.inner(states)))

    @without_autocast
    def logits(self, hidden: Tensor) -> Tensor:
        """Return (count, vocab) of the decoder's last hidden states."""
        return self.output(self.decoder_norm(hidden))

    # All positions at once: the encoder, and the decoder where the target is known.

    @without_autocast
    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Return the memory of all sources one after another, (tokens, d_model), and their lengths.

        Only attention sees padding; everything else runs on the tokens alone.
        """
        lengths = [len(source) for source in sources]
        length = round_up(max(lengths))
        self.reach(length)
        ids = torch.tensor([token for source in sources for token in source], device=self.device)
        mask = torch.arange(length, device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        places = mask.flatten().nonzero().squeeze(1)
        positions = places % length
        hidden = self.embed(ids, positions)
        bias = bias_of(mask, self.dtype)[:, None]  # (rows, query, key)
        for layer in self.encoder:
            hidden = self.attend_self(layer, hidden, positions, bias, (len(sources), length), places, lengths)
            hidden = self.feed_forward(layer, hidden)
        return self.encoder_norm(hidden), lengths

    def attend_self(
        self,
        layer: Layer,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        shape: tuple[int, int],
        places: Tensor | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """Return hidden states after self-attention; of sources with their lengths, and where they stand in
        (rows x length)."""
        attention = layer.self_attention

        def gather(states: Tensor) -> tuple[Linear, Tensor]:
            joint = self.rotated(attention.inner(states), positions)
            kernels = self.kernels()
            if kernels is not None and lengths is not None:
                return attention.output, attend_sources(kernels, joint, lengths, self.heads, self.head_dim)
            if kernels is not None:
                if not self.is_exact:  # as a cache keeps keys and values
                    kept = joint[:, self.heads * self.head_dim :]
                    kept.copy_(kept.to(self.cache_dtype(kernels)))
                return attention.output, attend_targets(kernels, joint, shape, self.heads, self.head_dim)
            if places is not None:
                joint = joint.new_zeros(shape[0] * shape[1], joint.shape[1]).index_copy_(0, places, joint)
            query, keys, values = joint.view(*shape, 3, self.heads, self.head_dim).unbind(2)
            gathered, _ = attend(query, keys.transpose(1, 2), values.transpose(1, 2), bias)
            return attention.output, gathered if places is None else gathered[places]

        return self.around(hidden, attention.norm, gather)

    @without_autocast
    def project_memory(self, memory: Tensor) -> Tensor:
        """Return every layer's keys and values of the memory, (tokens, layers, 2, heads, head_dim)."""
        shape = (len(memory), len(self.decoder), 2, self.heads, self.head_dim)
        return self.memory_keys_values(memory).view(shape)

    @without_autocast
    def decode(
        self, targets: Sequence[Sequence[int]], memory: Tensor, lengths: list[int], with_attention_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states (rows, target, d_model) of targets that begin with bos; and, if wanted, how
        much each position looks at each source position, the mean over layers and heads, (rows, target, source)."""
        ids = pad(targets, self.device)
        rows, length = ids.shape
        self.reach(length)
        positions = torch.arange(length, device=self.device).repeat(rows)
        hidden = self.embed(ids.flatten(), positions)
        causal = bias_of(torch.ones(length, length, dtype=torch.bool, device=self.device).tril(), self.dtype)[None]
        source = round_up(max(lengths))
        mask = torch.arange(source, device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        bias = bias_of(mask, self.dtype)[:, None]
        keys_values = memory.new_zeros(rows, source, len(self.decoder), 2, self.heads, self.head_dim)
        keys_values[mask] = self.project_memory(memory).to(self.cache_dtype(self.kernels())).to(memory.dtype)
        attention_weights = None
        if with_attention_weights:
            attention_weights = torch.zeros(rows, length, source, dtype=torch.float32, device=self.device)
        for number, layer in enumerate(self.decoder):
            hidden = self.attend_self(layer, hidden, positions, causal, (rows, length))
            keys, values = keys_values[:, :, number].permute(2, 0, 3, 1, 4).unbind()
            if attention_weights is None and (kernels := self.kernels()) is not None:
                hidden = self.attend_memory_natively(kernels, layer, hidden, keys, values, lengths)
            else:
                hidden, weights = self.attend_memory(layer, hidden, keys, values, bias)
                if attention_weights is not None:
                    attention_weights += weights.float().mean(1) / len(self.decoder)
            hidden = self.feed_forward(layer, hidden)
        return hidden.view(rows, length, -1), attention_weights

    def attend_memory_natively(
        self, kernels: ctypes.CDLL, layer: Layer, hidden: Tensor, keys: Tensor, values: Tensor, lengths: list[int]
    ) -> Tensor:
        """Return hidden states after cross-attention, as a search computes them; keys, values: (rows, heads, source,
        head_dim)."""
        attention = layer.cross_attention
        assert attention is not None

        def gather(states: Tensor) -> tuple[Linear, Tensor]:
            queries = attention.inner(states)
            output = torch.empty_like(queries)
            rows, heads, source, size = keys.shape
            parts = (in_blocks(keys), values.contiguous(), torch.tensor(lengths, device=self.device))
            shape = (rows, len(queries) // rows, heads, size, source)
            native.call(kernels.attend_memory, queries, *parts, output, *shape)
            return attention.output, output

        return self.around(hidden, attention.norm, gather)

    def attend_memory(
        self, layer: Layer, hidden: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and weights (rows, heads, queries, source)."""
        attention = layer.cross_attention
        assert attention is not None
        weights = [bias]

        def gather(states: Tensor) -> tuple[Linear, Tensor]:
            query = attention.inner(states).view(len(keys), -1, self.heads, self.head_dim)
            gathered, weights[0] = attend(query, keys, values, bias)
            return attention.output, gathered

        hidden = self.around(hidden, attention.norm, gather)
        return hidden, weights[0]

    # One position of every hypothesis.

    def attend_slots(self, layer: Layer, hidden: Tensor, cache: SlotCache, number: int) -> tuple[Tensor, Tensor]:
        """Return hidden states after cross-attention, and its weights, empty where the cache does not keep them."""
        attention = layer.cross_attention
        assert attention is not None
        attention_weights = [hidden]

        def gather(states: Tensor) -> tuple[Linear, Tensor]:
            gathered, attention_weights[0] = cache.attend_memory(number, attention.inner(states))
            return attention.output, gathered

        hidden = self.around(hidden, attention.norm, gather)
        return hidden, attention_weights[0]

    @without_autocast
    def step(self, ids: Tensor, cache: SlotCache) -> tuple[Tensor, Tensor]:
        """Return logits (rows x width, vocab) after each hypothesis' last token, ids (rows, width); and the last
        layer's attention to the source, (rows, heads, width, source), empty where the cache does not keep it."""
        rows, width = ids.shape
        cache.start_step(rows)
        self.reach(cache.length)
        positions = cache.positions[:rows].repeat_interleave(width)
        hidden = self.embed(ids.flatten(), positions)
        attention_weights = hidden
        for number, layer in enumerate(self.decoder):
            attention = layer.self_attention

            def gather(states: Tensor, attention: Attention = attention, number: int = number) -> tuple[Linear, Tensor]:
                joint = self.rotated(attention.inner(states), positions)
                return attention.output, cache.attend_past(number, joint)

            hidden = self.around(hidden, attention.norm, gather)
            hidden, attention_weights = self.attend_slots(layer, hidden, cache, number)
            hidden = self.feed_forward(layer, hidden)
        return self.logits(hidden), attention_weights


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return sequences padded at the right to a multiple of 16, (rows, length); single tokens as they are."""
    longest = max(map(len, sequences))
    length = round_up(longest) if longest > 1 else 1
    return torch.tensor([[*ids, *[PAD_ID] * (length - len(ids))] for ids in sequences], device=device)
