"""The whole network: what may change its logits and what may not."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer

PAD, VOCAB = 0, 19
SOURCE = torch.tensor([[3, 4, 5, 6, 2], [7, 8, 2, PAD, PAD]])
TARGET = torch.tensor([[1, 9, 10, 11], [1, 12, PAD, PAD]])

OPTIONS = [
    dict(zip(("activation", "norm", "norm_position", "positions"), values, strict=True))
    for values in product(("relu", "gelu", "swiglu"), ("layer", "rms"), ("pre", "post"), ("sinusoidal", "rotary"))
]
IDS = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8)


def tiny_model(dropout: float = 0.0, **options: Any) -> Transformer:
    torch.manual_seed(4)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, vocab_size=VOCAB, max_length=50)
    return Transformer(Architecture(**sizes, dropout=dropout, **options)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["sinusoidal", "rotary"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return tiny_model(positions=request.param)


def padded(ids: list[int], extra: int) -> Tensor:
    return torch.tensor([[*ids, *[PAD] * extra]])


@given(source=IDS, target=IDS, extra=st.tuples(st.integers(0, 6), st.integers(0, 6)), is_training=st.booleans())
def test_padding_does_not_change_logits(
    model: Transformer, source: list[int], target: list[int], extra: tuple[int, int], is_training: bool
):
    with torch.set_grad_enabled(is_training):  # with gradients attention takes another path
        alone = model(padded(source, 0), padded(target, 0))
        among_padding = model(padded(source, extra[0]), padded(target, extra[1]))[:, : len(target)]
    torch.testing.assert_close(among_padding, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_training", [True, False])
def test_companions_do_not_change_logits(model: Transformer, is_training: bool):
    with torch.set_grad_enabled(is_training):
        together = model(SOURCE, TARGET)
        alone = model(SOURCE[1:, :3], TARGET[1:, :2])
    torch.testing.assert_close(together[1:, :2], alone, atol=1e-5, rtol=0)


@given(source=IDS, target=IDS, tail=IDS, is_training=st.booleans())
def test_later_target_tokens_do_not_change_earlier_logits(
    model: Transformer, source: list[int], target: list[int], tail: list[int], is_training: bool
):
    with torch.set_grad_enabled(is_training):
        before = model(padded(source, 0), padded(target, 0))
        longer = model(padded(source, 0), padded(target + tail, 0))[:, : len(target)]
    torch.testing.assert_close(longer, before, atol=1e-5, rtol=0)


def test_every_token_and_every_order_counts(model: Transformer):
    logits = model(SOURCE, TARGET)[0, -1]
    for column in range(SOURCE.shape[1]):
        other = SOURCE.clone()
        other[0, column] = 13
        assert not torch.allclose(model(other, TARGET)[0, -1], logits, atol=1e-5)
    for column in range(TARGET.shape[1]):
        other = TARGET.clone()
        other[0, column] = 13
        assert not torch.allclose(model(SOURCE, other)[0, -1], logits, atol=1e-5)
    assert not torch.allclose(model(SOURCE[:, [1, 0, 2, 3, 4]], TARGET)[0, -1], logits, atol=1e-5)
    assert not torch.allclose(model(SOURCE, TARGET[:, [0, 2, 1, 3]])[0, -1], logits, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_every_combination_of_options_trains_every_parameter(options: dict[str, str]):
    model = tiny_model(dropout=0.1, **options).train()
    logits = model(SOURCE, TARGET)
    assert logits.shape == (2, 4, VOCAB)
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.endswith("query_key_value.bias") or name.endswith("key_value.bias") or parameter.grad.any(), name


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_training_and_inference_paths_agree_for_every_combination_of_options(options: dict[str, str]):
    model = tiny_model(**options)
    with torch.no_grad():
        fused = model(SOURCE, TARGET)
    torch.testing.assert_close(model(SOURCE, TARGET)[:, :2], fused[:, :2], atol=1e-5, rtol=0)


def test_the_output_layer_is_the_embedding():
    model = tiny_model()
    assert model.output_weight is model.embedding.tokens.weight
    assert sum(VOCAB in parameter.shape for parameter in model.parameters()) == 1
    before = model(SOURCE, TARGET)
    with torch.no_grad():
        model.embedding.tokens.weight[17] += torch.randn(16)  # a token that occurs in no input
    assert (model(SOURCE, TARGET) - before).abs().amax((0, 1)).gt(1e-6).nonzero().tolist() == [[17]]


def test_logits_begin_near_the_uniform_distribution():
    entropy = torch.distributions.Categorical(logits=tiny_model()(SOURCE, TARGET)).entropy()
    assert entropy[0].mean() > 0.75 * torch.tensor(VOCAB).log()


def test_bf16_logits_are_near_those_of_fp32():
    model = tiny_model()
    exact = model(SOURCE, TARGET)
    narrow = model.bfloat16()(SOURCE, TARGET)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow[0].float(), exact[0], atol=0.1, rtol=0.1)


def test_dropout_is_on_in_training_only():
    model = tiny_model(dropout=0.3)
    assert torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))
    model.train()
    assert not torch.allclose(model(SOURCE, TARGET), model(SOURCE, TARGET))
