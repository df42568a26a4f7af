"""Samples follow the distribution, and from the seed and the row alone."""

from __future__ import annotations

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.draws import draw, keep_likely, number_of, uniform
from tfray.generation.generate import generate
from tfray.generation.rows import Hypothesis, Output, Request
from tfray.generation.samples import least_risk, most_probable

FILTERS = [
    dict(),
    dict(temperature=0.5),
    dict(temperature=2.0),
    dict(top_k=4),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(temperature=1.5, top_k=6, top_p=0.9, min_p=0.02),
]


def obvious_probabilities(log_probs: list[float], config: GenerationConfig) -> list[float]:
    weights = {token: 2.718281828459045 ** (value / config.temperature) for token, value in enumerate(log_probs)}
    kept = sorted(weights, key=lambda token: (-weights[token], token))
    kept = [token for token in kept if weights[token] > 0]
    kept = kept[: config.top_k or None]
    kept = [token for token in kept if weights[token] >= config.min_p * weights[kept[0]]]
    total, nucleus, held = sum(weights[token] for token in kept), [], 0.0
    for token in kept:
        if held < config.top_p or not nucleus:
            nucleus.append(token)
        held += weights[token] / total
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in weights]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_keep_what_the_obvious_ones_keep(options):
    config = GenerationConfig(search="sample", **options)
    torch.manual_seed(3)
    log_probs = torch.randn(20, 30).mul(2).log_softmax(-1)
    log_probs[:, :2] = float("-inf")
    log_probs[:5, 7] = log_probs[:5, 21]  # equal ones
    found = keep_likely(log_probs, config).softmax(-1)
    expected = torch.tensor([obvious_probabilities(row, config) for row in log_probs.double().tolist()])
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", FILTERS, ids=str)
@torch.no_grad()
def test_frequencies_match_the_distribution(options, lively):
    """Chi-square of first tokens over 4,000 rows with the same source."""
    model, rows = lively(8, end=0.0), 4000
    with torch.no_grad():
        model.output_weight.mul_(0.3)
    config = GenerationConfig(search="sample", max_length=1, batch_rows=1000, precision="fp32", **options)
    log_probs = model(torch.tensor([[5, 9, 2]]), torch.tensor([[1]]))[0, 0].double().log_softmax(-1)
    log_probs[:2] = float("-inf")
    expected = torch.tensor(obvious_probabilities(log_probs.tolist(), config)) * rows
    found = torch.zeros(15)
    for output in generate(model, [[5, 9, 2]] * rows, config):
        found[(output.best.ids or [2])[0]] += 1
    possible = expected > 0
    assert found[~possible].sum() == 0
    freedom = int(possible.sum()) - 1
    chi_square = float(((found - expected)[possible] ** 2 / expected[possible]).sum())
    assert freedom >= 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def test_at_the_smallest_temperature_the_most_probable_token_is_drawn():
    log_probs = torch.tensor([[float("-inf"), -3.0, -0.1, -2.5], [-0.5, -1.0, -5.0, -9.0]])
    config = GenerationConfig(search="sample", temperature=5e-324)
    assert draw(log_probs, torch.tensor([0.9, 0.9], dtype=torch.float64), config).tolist() == [2, 0]


def test_chance_is_even_and_independent_of_its_neighbours():
    rows = torch.arange(200).repeat_interleave(50)
    steps = torch.arange(50).repeat(200)
    zeros = torch.zeros_like(rows)
    numbers = uniform(1, rows, zeros, steps)
    assert 0 <= float(numbers.min()) and float(numbers.max()) < 1
    assert torch.histc(numbers.float(), 20, 0, 1).sub(500).abs().max() < 100
    grid = numbers.view(200, 50) - 0.5
    assert float((grid[:, 1:] * grid[:, :-1]).mean().abs()) < 0.003
    assert float((grid[1:] * grid[:-1]).mean().abs()) < 0.003
    for other in (uniform(2, rows, zeros, steps), uniform(1, rows, zeros + 1, steps), uniform(1, steps, zeros, rows)):
        assert float(((other - 0.5) * (numbers - 0.5)).mean().abs()) < 0.003


def test_a_draw_by_the_highest_chance_is_a_possible_token():
    log_probs = torch.tensor([[float("-inf"), 0.0, -30.0, float("-inf")]])
    config = GenerationConfig(search="sample")
    assert draw(log_probs, torch.tensor([1 - 2**-53], dtype=torch.float64), config).item() in (1, 2)
    assert draw(log_probs, torch.tensor([0.0], dtype=torch.float64), config).item() == 1


def test_samples_follow_from_the_seed_and_the_rows_number(lively, sources_of):
    model, sources = lively(4), sources_of(10)
    config = GenerationConfig(search="sample", samples=3, precision="fp32")
    first = generate(model, sources, config)
    assert generate(model, sources, config) == first
    moved = generate(model, [Request(source, number=row) for row, source in enumerate(sources)][::-1], config)
    assert moved[::-1] == first
    other = generate(model, sources, GenerationConfig(search="sample", samples=3, seed=2, precision="fp32"))
    assert sum(one != two for one, two in zip(first, other, strict=True)) > 7
    assert all(len(output.hypotheses) == 3 for output in first)
    assert sum(len({tuple(h.ids) for h in output.hypotheses}) == 3 for output in first) > 5
    same = generate(model, [sources[0]] * 2, config)
    assert same[0] != same[1], "equal sources in two rows are two chances"


def test_the_sample_of_least_risk_is_the_one_most_like_all_samples():
    samples = [[3, 4, 5], [3, 4, 6], [9, 9], [3, 4, 5]]
    output = Output([Hypothesis(ids, -float(place), True) for place, ids in enumerate(samples)])

    def utility(candidate, reference):
        return len(set(candidate) & set(reference)) / max(len(candidate), len(reference))

    def table(targets):
        return [[utility(one, other) for other in targets] for one in targets]

    found = least_risk(output, table, n_best=3)
    means = {tuple(ids): sum(utility(ids, other) for other in samples) / 4 for ids in samples}
    expected = sorted(means, key=lambda ids: -means[ids])
    assert [tuple(h.ids) for h in found.hypotheses] == expected
    assert [h.ranking_score for h in found.hypotheses] == [means[ids] for ids in expected]
    assert found.best.score == 0.0
    broken = Output(error="empty: x")
    assert least_risk(broken, table) is broken


def test_of_samples_the_best_come_back_first_each_once_and_those_that_end_before_the_others():
    drawn = [([3], -2.0, True), ([4], -1.0, True), ([3], -2.0, True), ([5], -0.5, False), ([6], -2.0, True)]
    output = Output([Hypothesis(ids, 9.0, is_finished, rank) for ids, rank, is_finished in drawn])
    assert [h.ids for h in most_probable(output, 9).hypotheses] == [[4], [3], [6], [5]]
    assert [h.ids for h in most_probable(output, 2).hypotheses] == [[4], [3]]
    assert most_probable(output).best.ids == [4]


def test_a_sample_ranks_as_it_would_in_a_beam(lively, sources_of):
    config = GenerationConfig(search="sample", samples=2, length_penalty=0.7, precision="fp32")
    for output in generate(lively(4), sources_of(10), config):
        for sample in output.hypotheses:
            assert sample.ranking_score == pytest.approx(sample.score / (len(sample.ids) + sample.is_finished) ** 0.7)


def test_each_row_of_each_file_and_each_piece_of_it_has_a_number_of_its_own():
    names = [(path, row, piece) for path in ("a", "a1", "b/a") for row in range(200) for piece in range(20)]
    assert len({number_of(*name) for name in names}) == len(names)
    assert number_of("a", 7, 1) == number_of("a", 7, 1)
    assert all(-(2**63) <= number_of(*name) < 2**63 for name in names)


def test_the_pieces_of_a_source_have_chances_that_no_other_row_has(lively):
    """All pieces are alike; what differs is their chance."""
    config = GenerationConfig(search="sample", long_sources="split", precision="fp32")
    requests = [Request([*[7] * 44, 2], number=number) for number in (3, 4, 3 + (1 << 32))]
    outputs = generate(lively(4, max_length=16), [*requests, Request([*[7] * 15, 2], number=3)], config)
    found = [tuple(part.ids) for output in outputs for part in output.best.pieces or (output.best,)]
    assert len(found) == 10 and len(set(found)) == 10
