"""Scores, classes, embeddings and alignments against the training model."""

from __future__ import annotations

import math

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.network import Network
from tfray.generation.scoring import align, classify, embed, score


@torch.no_grad()
def test_token_scores_are_the_training_models_log_probabilities(lively, sources_of):
    model, sources, targets = lively(3), sources_of(17), sources_of(17, seed=9)
    found = score(Network(model), sources, targets, batch_rows=5)
    for source, target, each in zip(sources, targets, found, strict=True):
        log_probs = model(torch.tensor([source]), torch.tensor([[1, *target[:-1]]])).log_softmax(-1)[0]
        expected = log_probs[range(len(target)), target].tolist()
        assert each.token_log_probs == pytest.approx(expected, abs=1e-3)
        assert each.log_prob == pytest.approx(sum(expected), abs=1e-3)
        assert each.perplexity == pytest.approx(math.exp(-sum(expected) / len(target)), rel=1e-3)
    again = score(Network(model), sources[::-1], targets[::-1], batch_rows=1)[::-1]
    for one, other in zip(found, again, strict=True):
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-4)


def test_a_target_without_tokens_has_no_perplexity(lively):
    [empty] = score(Network(lively(3)), [[5, 2]], [[]])
    assert empty.log_prob == 0 and math.isnan(empty.perplexity)


@torch.no_grad()
def test_class_probabilities_are_the_next_tokens_restricted_to_the_labels(lively, sources_of):
    model, sources, labels = lively(3), sources_of(11), [9, 4, 12]
    found = classify(Network(model), sources, labels, batch_rows=4)
    torch.testing.assert_close(found.sum(-1), torch.ones(11))
    for row, source in enumerate(sources):
        every = model(torch.tensor([source]), torch.tensor([[1]]))[0, 0].softmax(-1)
        torch.testing.assert_close(found[row], every[labels] / every[labels].sum(), atol=1e-4, rtol=0)
    assert torch.equal(classify(Network(model), sources[::-1], labels, batch_rows=1).flip(0), found)
    assert classify(Network(model), [], labels, batch_rows=4).shape == (0, 3)


@torch.no_grad()
def test_an_embedding_is_the_mean_of_the_memory(lively, sources_of):
    model, sources = lively(3), sources_of(11)
    found = embed(Network(model), sources, batch_rows=4)
    for row, source in enumerate(sources):
        expected = model.encode(torch.tensor([source])).hidden[0].mean(0)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(embed(Network(model), sources[::-1], batch_rows=1).flip(0), found)


@torch.no_grad()
def test_alignments_are_the_mean_cross_attention(lively, sources_of, obvious_next):
    from tfray.generation.rows import Request

    model, sources, targets = lively(3, decoder_layers=1), sources_of(6), sources_of(6, seed=9)
    for source, target, found in zip(sources, targets, align(Network(model), sources, targets), strict=True):
        assert found.shape == (len(target), len(source))
        torch.testing.assert_close(found.sum(1), torch.ones(len(target)))
        _, expected = obvious_next([model], Request(source), target[:-1], GenerationConfig())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
