"""Ids in, ids out: whatever the batches, a row's result is its own."""

from __future__ import annotations

import random

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.generate import batches_by_length, classify, generate, longest_target
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

VOCAB = 15


def lively_model(seed: int, max_length: int = 60) -> Transformer:
    """A random model whose targets vary and end now and then."""
    torch.manual_seed(seed)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=2, vocab_size=VOCAB)
    model = Transformer(Architecture(**sizes, max_length=max_length)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1 if name == "embedding.tokens.weight" else 2.5
            parameter += 0.3 * torch.randn_like(parameter)
        model.decoder_norm.bias += 0.6 * model.output_weight[EOS_ID]
    return model


def some_sources(count: int) -> list[list[int]]:
    choose = random.Random(5)
    return [[*choose.choices(range(3, VOCAB), k=choose.randint(0, 9)), EOS_ID] for _ in range(count)]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_results_do_not_depend_on_batches_order_or_companions(beam_size: int):
    model, sources = lively_model(2), some_sources(20)
    expected = generate(model, sources, GenerationConfig(beam_size=beam_size, batch_rows=64, max_length_extra=5))
    order = random.Random(1).sample(range(len(sources)), len(sources))
    for batch_rows in (1, 2, 7):
        config = GenerationConfig(beam_size=beam_size, batch_rows=batch_rows, max_length_extra=5)
        found = generate(model, [sources[row] for row in order], config)
        for row, hypothesis in zip(order, found, strict=True):
            assert hypothesis.ids == expected[row].ids
            assert hypothesis.is_finished == expected[row].is_finished
            assert hypothesis.score == pytest.approx(expected[row].score, abs=1e-4)
    assert len({tuple(hypothesis.ids) for hypothesis in expected}) > 5


@pytest.mark.parametrize("beam_size", [1, 3])
def test_limits_follow_from_the_source_and_end_at_the_models_longest(beam_size: int):
    sources = some_sources(12)
    config = GenerationConfig(beam_size=beam_size, max_length_ratio=1.5, max_length_extra=2)
    finished = set()
    for seed in range(6):
        model = lively_model(seed, max_length=11)
        for source, hypothesis in zip(sources, generate(model, sources, config), strict=True):
            limit = min(-int(-1.5 * len(source) // 1) + 2, 11)
            assert longest_target(len(source), model, config) == limit
            assert len(hypothesis.ids) + 1 <= limit if hypothesis.is_finished else len(hypothesis.ids) == limit
            assert EOS_ID not in hypothesis.ids
            finished.add(hypothesis.is_finished)
    assert finished == {True, False}


@pytest.mark.parametrize("beam_size", [1, 4, 40])
@pytest.mark.parametrize("wanted", [PAD_ID, BOS_ID])
def test_pad_and_bos_are_never_generated_even_by_a_model_that_wants_them(wanted: int, beam_size: int):
    model = lively_model(0)
    with torch.no_grad():
        model.embedding.tokens.weight[wanted] = 3.0 * torch.randn(16)
        model.decoder_norm.bias += model.embedding.tokens.weight[wanted]
        logits = model(torch.tensor([[3, 2]]), torch.tensor([[BOS_ID, 4]]))
    assert logits.argmax(-1).unique().tolist() == [wanted]
    for hypothesis in generate(model, some_sources(8), GenerationConfig(beam_size=beam_size, max_length_extra=4)):
        assert not {PAD_ID, BOS_ID} & set(hypothesis.ids)
        assert torch.tensor(hypothesis.score).isfinite()


def test_no_sources_give_no_results():
    assert generate(lively_model(0), [], GenerationConfig()) == []
    assert classify(lively_model(0), [], [3, 4], batch_rows=8).shape == (0, 2)


@torch.no_grad()
def test_class_probabilities_are_the_next_tokens_restricted_to_the_labels():
    model, sources, labels = lively_model(3), some_sources(11), [9, 4, 12]
    found = classify(model, sources, labels, batch_rows=4)
    torch.testing.assert_close(found.sum(-1), torch.ones(11))
    for row, source in enumerate(sources):
        every = model(torch.tensor([source]), torch.tensor([[BOS_ID]]))[0, 0].softmax(-1)
        torch.testing.assert_close(found[row], every[labels] / every[labels].sum(), atol=1e-5, rtol=0)
    torch.testing.assert_close(classify(model, sources[::-1], labels, batch_rows=1).flip(0), found, atol=1e-5, rtol=0)


def test_batches_hold_every_row_once_the_longest_first():
    sources = some_sources(23)
    batches = list(batches_by_length(sources, 5))
    assert sorted(row for rows in batches for row in rows) == list(range(23))
    lengths = [len(sources[row]) for rows in batches for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(rows) for rows in batches] == [5, 5, 5, 5, 3]
