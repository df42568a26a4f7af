"""The layers of the two stacks: attention and feed-forward, each with residual and norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from tfray.model.architecture import Architecture
from tfray.model.attention import CrossAttention, SelfAttention, over_heads
from tfray.model.dropout import Dropout
from tfray.model.fused import LayerNorm


def make_norm(architecture: Architecture) -> nn.Module:
    """Return LayerNorm or RMSNorm over d_model."""
    kind = LayerNorm if architecture.norm == "layer" else nn.RMSNorm
    return kind(architecture.d_model)


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between, at every position alike."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.activation = architecture.activation
        width = architecture.d_ff * (2 if self.activation == "swiglu" else 1)
        self.inner = nn.Linear(architecture.d_model, width)
        self.output = nn.Linear(architecture.d_ff, architecture.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (batch, length, d_model)."""
        inner = self.inner(hidden)
        if self.activation == "swiglu":  # Shazeer 2020, equation 6
            gate, value = inner.chunk(2, dim=-1)
            return self.output(F.silu(gate) * value)
        return self.output(F.relu(inner) if self.activation == "relu" else F.gelu(inner))


class Residual(nn.Module):
    """Add a sub-layer's output to its input, normalized before (pre) or after (post)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.is_pre_norm = architecture.norm_position == "pre"
        self.norm = make_norm(architecture)
        self.dropout = Dropout(architecture.dropout)

    def forward(self, hidden: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_pre_norm:
            return self.dropout.add(hidden, sublayer(self.norm(hidden)))
        return self.norm(self.dropout.add(hidden, sublayer(hidden)))


class EncoderLayer(nn.Module):
    """Self-attention over the source, then feed-forward."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.self_attention = SelfAttention(architecture)
        self.feed_forward = FeedForward(architecture)
        self.around_attention = Residual(architecture)
        self.around_feed_forward = Residual(architecture)

    def forward(self, hidden: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return (batch, source, d_model)."""
        visible = over_heads(mask)
        hidden = self.around_attention(hidden, lambda states: self.self_attention(states, visible, positions=positions))
        return self.around_feed_forward(hidden, self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention over the target so far, cross-attention over the source, feed-forward."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.self_attention = SelfAttention(architecture)
        self.cross_attention = CrossAttention(architecture)
        self.feed_forward = FeedForward(architecture)
        self.around_self_attention = Residual(architecture)
        self.around_cross_attention = Residual(architecture)
        self.around_feed_forward = Residual(architecture)

    def forward(
        self,
        hidden: Tensor,
        memory_keys_values: tuple[Tensor, Tensor],
        memory_mask: Tensor,
        own_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return (batch, target, d_model).

        `own_mask` and `positions` are those of packed rows; without, a target sees all that is before it.
        """
        visible = None if own_mask is None else over_heads(own_mask)
        is_causal = visible is None
        hidden = self.around_self_attention(
            hidden, lambda states: self.self_attention(states, visible, is_causal, positions)
        )
        hidden = self.around_cross_attention(
            hidden, lambda states: self.cross_attention(states, *memory_keys_values, memory_mask)
        )
        return self.around_feed_forward(hidden, self.feed_forward)
