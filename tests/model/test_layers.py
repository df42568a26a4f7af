"""Feed-forward, residuals and the two kinds of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.model.architecture import Architecture
from tfray.model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual, make_norm

ARCHITECTURE = Architecture(d_model=16, num_heads=4, d_ff=24, encoder_layers=1, decoder_layers=1, dropout=0.0)


def hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, 16, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_feed_forward_is_its_formula(activation: Any):
    layer = FeedForward(replace(ARCHITECTURE, activation=activation))
    states = hidden(2, 5)
    inner = states @ layer.inner.weight.T + layer.inner.bias
    if activation == "swiglu":
        gate, value = inner[..., :24], inner[..., 24:]
        inner = gate * torch.sigmoid(gate) * value
    else:
        inner = {"relu": F.relu, "gelu": F.gelu}[activation](inner)
    torch.testing.assert_close(layer(states), inner @ layer.output.weight.T + layer.output.bias)


def test_layer_norm_centres_and_rms_norm_does_not():
    states = hidden(2, 5) + 3
    layer, rms = (make_norm(replace(ARCHITECTURE, norm=norm))(states) for norm in ("layer", "rms"))
    torch.testing.assert_close(layer.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(rms, states / states.pow(2).mean(-1, keepdim=True).sqrt(), atol=1e-4, rtol=1e-4)


def test_pre_norm_leaves_the_residual_path_free_and_post_norm_normalizes_it():
    states = hidden(2, 5) * 7
    pre, post = (Residual(replace(ARCHITECTURE, norm_position=position)) for position in ("pre", "post"))
    torch.testing.assert_close(pre(states, torch.sin), states + pre.norm(states).sin())
    torch.testing.assert_close(post(states, torch.sin), post.norm(states + states.sin()))


def test_the_encoder_does_not_see_padding():
    layer = EncoderLayer(ARCHITECTURE).eval()
    mask = torch.tensor([[True] * 3 + [False] * 2])
    states = hidden(1, 5)
    changed = torch.cat([states[:, :3], hidden(1, 2)], dim=1)
    torch.testing.assert_close(layer(states, mask)[:, :3], layer(changed, mask)[:, :3])
    torch.testing.assert_close(layer(states, mask)[:, :3], layer(states[:, :3], mask[:, :3]), atol=1e-5, rtol=1e-5)


def test_the_decoder_sees_the_memory_and_not_what_comes_later():
    layer = DecoderLayer(ARCHITECTURE).eval()
    memory, mask = layer.cross_attention.project(hidden(1, 4)), torch.tensor([[True, True, True, False]])
    states = hidden(1, 5)
    later = torch.cat([states[:, :3], hidden(1, 2)], dim=1)
    seen = layer(states, memory, mask)
    torch.testing.assert_close(layer(later, memory, mask)[:, :3], seen[:, :3])
    assert not torch.allclose(layer(later, memory, mask)[:, 3:], seen[:, 3:])
    assert not torch.allclose(layer(states, layer.cross_attention.project(hidden(1, 4) + 1), mask), seen)
