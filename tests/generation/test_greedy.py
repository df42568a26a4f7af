"""Greedy search against the slow and obvious one."""

from __future__ import annotations

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.generate import pad
from tfray.generation.greedy import greedy_search
from tfray.generation.hypothesis import Hypothesis, next_log_probs
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

SOURCES = [[3, 4, 5, 6, 2], [7, 8, 2], [9, 2], [10, 11, 12, 2], [6, 6, 7, 2], [2], [14, 13, 5, 2]]
LIMITS = [9, 40, 6, 12, 1, 7, 30]


def lively_model(seed: int) -> Transformer:
    """A random model whose targets vary and end now and then."""
    torch.manual_seed(seed)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=2, vocab_size=15, max_length=99)
    model = Transformer(Architecture(**sizes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1 if name == "embedding.tokens.weight" else 2.5
            parameter += 0.3 * torch.randn_like(parameter)
        model.decoder_norm.bias += 0.6 * model.output_weight[EOS_ID]
    return model


@torch.no_grad()
def obvious_greedy(model: Transformer, source: list[int], limit: int) -> Hypothesis:
    ids: list[int] = []
    score = 0.0
    while len(ids) < limit:
        log_probs = model(torch.tensor([source]), torch.tensor([[BOS_ID, *ids]]))[0, -1].log_softmax(-1)
        allowed = [token for token in range(len(log_probs)) if token not in (PAD_ID, BOS_ID)]
        token = max(allowed, key=lambda token: float(log_probs[token]))
        score += float(log_probs[token])
        if token == EOS_ID:
            return Hypothesis(ids, score, True)
        ids.append(token)
    return Hypothesis(ids, score, False)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_greedy_search_finds_what_the_obvious_one_finds(seed: int):
    model = lively_model(seed)
    found = greedy_search(model, pad(SOURCES, torch.device("cpu")), LIMITS, GenerationConfig(beam_size=1))
    for hypothesis, source, limit in zip(found, SOURCES, LIMITS, strict=True):
        expected = obvious_greedy(model, source, limit)
        assert (hypothesis.ids, hypothesis.is_finished) == (expected.ids, expected.is_finished)
        assert hypothesis.score == pytest.approx(expected.score, abs=1e-4)


def test_the_models_here_both_finish_and_run_into_limits():
    found = [obvious_greedy(lively_model(seed), *row) for seed in range(6) for row in zip(SOURCES, LIMITS, strict=True)]
    assert {hypothesis.is_finished for hypothesis in found} == {True, False}
    assert len({tuple(hypothesis.ids) for hypothesis in found}) > 15


def test_pad_and_bos_are_impossible_and_the_others_keep_their_probability():
    logits = torch.randn(2, 7)
    log_probs = next_log_probs(logits, PAD_ID, BOS_ID)
    assert log_probs[:, [PAD_ID, BOS_ID]].eq(float("-inf")).all()
    torch.testing.assert_close(log_probs[:, 2:], logits.log_softmax(-1)[:, 2:])
    assert next_log_probs(logits.bfloat16(), PAD_ID, BOS_ID).dtype == torch.float32
