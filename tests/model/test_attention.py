"""Attention against torch's own, on the path for training and on that for inference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.model.architecture import Architecture
from tfray.model.attention import SelfAttention, attend

ARCHITECTURE = Architecture(d_model=16, num_heads=4, d_ff=8, encoder_layers=1, decoder_layers=1)


def padding_mask() -> Tensor:
    """Two rows of 6 keys, the last ones padding."""
    return (torch.arange(6) < torch.tensor([[6], [2]]))[:, None, None, :]


@pytest.mark.parametrize("kind", ["none", "padding", "causal"])
@pytest.mark.parametrize("is_training", [True, False])
def test_attend_equals_torchs_attention_and_so_do_its_gradients(kind: str, is_training: bool):
    torch.manual_seed(0)
    queries = 6 if kind == "causal" else 3
    states = [torch.randn(2, 4, length, 8, requires_grad=is_training) for length in (queries, 6, 6)]
    mask = padding_mask() if kind == "padding" else None
    ours = attend(*states, mask, causal=kind == "causal")
    theirs = F.scaled_dot_product_attention(*states, attn_mask=mask, is_causal=kind == "causal")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    if is_training:
        weights = torch.randn_like(ours)
        gradients = [torch.autograd.grad((output * weights).sum(), states) for output in (ours, theirs)]
        for our, their in zip(*gradients, strict=True):
            torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_what_a_mask_hides_has_no_influence(is_training: bool):
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 4, 6, 8, requires_grad=is_training) for _ in range(3))
    hidden = (~padding_mask()).transpose(-1, -2) * 100.0
    seen = attend(query, keys, values, padding_mask())
    torch.testing.assert_close(attend(query, keys + hidden, values + hidden, padding_mask()), seen)
    assert not torch.allclose(attend(query, keys, values + hidden, None), seen)


def test_a_query_sees_itself_and_what_is_before():
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    (gradient,) = torch.autograd.grad(attend(query, keys, values, None, causal=True)[0, 0, 2].sum(), values)
    assert gradient[0, 0].abs().sum(-1).ne(0).tolist() == [True, True, True, False, False]


def test_heads_split_the_width_in_order_and_merge_back():
    attention = SelfAttention(ARCHITECTURE)
    states = torch.randn(2, 5, 16)
    heads = attention.split(states)
    assert heads.shape == (2, 4, 5, 4)
    torch.testing.assert_close(heads[:, 1], states[..., 4:8])
    torch.testing.assert_close(attention.merge(heads), attention.output(states))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_only_rotary_self_attention_knows_the_order(positions: str):
    torch.manual_seed(0)
    attention = SelfAttention(
        Architecture(d_model=16, num_heads=4, d_ff=8, encoder_layers=1, decoder_layers=1, positions=positions)  # type: ignore[arg-type]
    )
    hidden = torch.randn(1, 5, 16)
    is_blind = torch.allclose(attention(hidden).flip(1), attention(hidden.flip(1)), atol=1e-5)
    assert is_blind == (positions == "sinusoidal")
