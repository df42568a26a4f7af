"""Beam search against brute force and greedy search."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.beam import Beam, Candidate, beam_search, best_candidates
from tfray.generation.generate import pad
from tfray.generation.greedy import greedy_search
from tfray.generation.hypothesis import Hypothesis
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID

CPU = torch.device("cpu")


def lively_model(seed: int, vocab_size: int) -> Transformer:
    """A random model whose targets vary and end now and then."""
    torch.manual_seed(seed)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=2, max_length=99)
    model = Transformer(Architecture(**sizes, vocab_size=vocab_size)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1 if name == "embedding.tokens.weight" else 2.5
            parameter += 0.3 * torch.randn_like(parameter)
        model.decoder_norm.bias += 0.6 * model.output_weight[EOS_ID]
    return model


@torch.no_grad()
def search(model: Transformer, sources: list[list[int]], limits: list[int], **config: float) -> list[Hypothesis]:
    return beam_search(model, pad(sources, CPU), limits, GenerationConfig(**config))  # type: ignore[arg-type]


@torch.no_grad()
def forced_score(model: Transformer, source: list[int], hypothesis: Hypothesis) -> float:
    """Return the sum of the log-probabilities of a hypothesis' tokens, decoded at once."""
    labels = [*hypothesis.ids, *([EOS_ID] if hypothesis.is_finished else [])]
    log_probs = model(torch.tensor([source]), torch.tensor([[BOS_ID, *labels[:-1]]])).log_softmax(-1)
    return float(log_probs[0, range(len(labels)), labels].sum())


def brute_force(model: Transformer, source: list[int], limit: int, length_penalty: float) -> Hypothesis:
    """Return the best of all finished targets."""
    words = range(EOS_ID + 1, model.architecture.vocab_size)
    targets = [list(ids) for length in range(limit) for ids in product(words, repeat=length)]
    found = [Hypothesis(ids, forced_score(model, source, Hypothesis(ids, 0.0, True)), True) for ids in targets]
    return max(found, key=lambda hypothesis: hypothesis.score / (len(hypothesis.ids) + 1) ** length_penalty)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("vocab_size", [4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_targets(seed: int, vocab_size: int, length_penalty: float):
    model = lively_model(seed, vocab_size)
    sources, limits = [[3, 2], [3, 3, 3, 2], [2]], [4, 3, 1]
    found = search(model, sources, limits, beam_size=20, length_penalty=length_penalty)
    for hypothesis, source, limit in zip(found, sources, limits, strict=True):
        best = brute_force(model, source, limit, length_penalty)
        assert (hypothesis.ids, hypothesis.is_finished) == (best.ids, True)
        assert hypothesis.score == pytest.approx(best.score, abs=1e-4)


def test_wider_than_the_vocabulary_does_not_end_early():
    for seed in range(20):
        model = lively_model(seed, 5)
        widths = [search(model, [[3, 4, 2]], [5], beam_size=size, length_penalty=0.0)[0] for size in (32, 100)]
        assert widths[0].ids == widths[1].ids == brute_force(model, [3, 4, 2], 5, 0.0).ids


SOURCES = [[3, 4, 5, 6, 2], [7, 8, 2], [9, 2], [10, 11, 12, 2], [6, 6, 7, 2], [2], [14, 13, 5, 2]]
LIMITS = [9, 20, 6, 12, 1, 7, 15]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy_search(seed: int):
    model = lively_model(seed, 15)
    config = GenerationConfig(beam_size=1)
    greedy, beam = (find(model, pad(SOURCES, CPU), LIMITS, config) for find in (greedy_search, beam_search))
    for one, other in zip(greedy, beam, strict=True):
        assert (one.ids, one.is_finished) == (other.ids, other.is_finished)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("beam_size", [2, 3, 5, 40])
@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_that_of_forced_decoding(seed: int, beam_size: int):
    model = lively_model(seed, 15)
    for source, hypothesis in zip(SOURCES, search(model, SOURCES, LIMITS, beam_size=beam_size), strict=True):
        assert hypothesis.score == pytest.approx(forced_score(model, source, hypothesis), abs=1e-4)


@pytest.mark.parametrize("beam_size", [2, 5])
def test_limits_hold_row_by_row_and_an_unfinished_target_is_as_long_as_its_limit(beam_size: int):
    found = [
        (hypothesis, limit)
        for seed in range(6)
        for hypothesis, limit in zip(
            search(lively_model(seed, 15), SOURCES, LIMITS, beam_size=beam_size), LIMITS, strict=True
        )
    ]
    assert {hypothesis.is_finished for hypothesis, _ in found} == {True, False}
    for hypothesis, limit in found:
        length = len(hypothesis.ids) + hypothesis.is_finished
        assert length <= limit if hypothesis.is_finished else length == limit


@torch.no_grad()
def test_companions_and_their_order_do_not_change_a_rows_beam():
    model = lively_model(1, 15)
    together = search(model, SOURCES, LIMITS, beam_size=4)
    backwards = search(model, SOURCES[::-1], LIMITS[::-1], beam_size=4)[::-1]
    for row, hypothesis in enumerate(together):
        alone = search(model, [SOURCES[row]], [LIMITS[row]], beam_size=4)[0]
        assert alone.ids == backwards[row].ids == hypothesis.ids
        assert alone.score == pytest.approx(hypothesis.score, abs=1e-4)


def test_a_larger_length_penalty_prefers_longer_targets():
    lengths = {
        penalty: sum(
            len(hypothesis.ids)
            for seed in range(5)
            for hypothesis in search(
                lively_model(seed, 15), SOURCES, LIMITS, beam_size=6, length_penalty=float(penalty)
            )
        )
        for penalty in (0, 2)
    }
    assert lengths[0] < lengths[2]


def test_a_row_stops_once_nothing_open_can_be_better():
    beam = Beam(10, GenerationConfig(beam_size=2, length_penalty=0.0))
    beam.extend([Candidate(0, 5, -0.1), Candidate(0, 6, -0.2), Candidate(0, EOS_ID, -0.3)])
    assert not beam.is_done and beam.best is None, "an end that is not among the best two does not count"
    beam.extend([Candidate(0, EOS_ID, -0.4), Candidate(1, 7, -0.5), Candidate(1, 8, -0.6)])
    assert beam.is_done
    assert beam.result == Hypothesis([5], -0.4, True)


def test_a_row_goes_on_while_something_open_can_become_better():
    beam = Beam(10, GenerationConfig(beam_size=2, length_penalty=1.0))
    beam.extend([Candidate(0, 5, -0.1), Candidate(0, 6, -0.2)])
    beam.extend([Candidate(0, EOS_ID, -0.4), Candidate(1, 7, -0.5), Candidate(1, 8, -0.6)])
    assert not beam.is_done  # -0.5 / 10 is better than -0.4 / 2


def test_candidates_are_the_best_extensions_of_all_beginnings():
    log_probs = torch.randn(2 * 3, 7).log_softmax(-1)
    scores = torch.randn(2, 3)
    for row, candidates in enumerate(best_candidates(log_probs, scores)):
        totals = scores[row, :, None] + log_probs.view(2, 3, 7)[row]
        assert [candidate.score for candidate in candidates] == totals.flatten().sort(descending=True).values[
            :6
        ].tolist()
        assert all(float(totals[c.place, c.token]) == c.score for c in candidates)


def test_impossible_ends_that_fill_up_a_wide_beam_do_not_count():
    beam = Beam(10, GenerationConfig(beam_size=3))
    nothing = float("-inf")
    ends = [Candidate(place, EOS_ID, nothing) for place in range(3)]
    beam.extend([Candidate(0, 5, -0.1), *ends, Candidate(1, 6, nothing), Candidate(2, 6, nothing)])
    assert beam.ended == 0 and not beam.is_done
    assert beam.open[0] == ([5], -0.1)
