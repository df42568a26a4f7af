"""The best tokens, exactly, with equal scores in the order of their ids."""

from __future__ import annotations

import pytest
import torch

from tfray.generation.select import BLOCK, best_token, best_tokens


@pytest.mark.parametrize("vocab", [3, 15, 256, 300, 1000, 8192])
@pytest.mark.parametrize("count", [1, 2, 8, 40])
@pytest.mark.parametrize("kind", ["random", "many equal", "mostly impossible", "all equal"])
def test_the_best_come_first_and_equal_ones_by_id(vocab, count, kind):
    torch.manual_seed(vocab + count)
    scores = torch.randn(9, vocab)
    if kind == "many equal":
        scores = torch.randint(-3, 3, (9, vocab)).float()
    elif kind == "mostly impossible":
        scores[torch.rand(9, vocab) < 0.97] = float("-inf")
    elif kind == "all equal":
        scores[:] = -1.5
    values, ids = best_tokens(scores, count)
    for row in range(9):
        expected = sorted(range(vocab), key=lambda token: (-float(scores[row, token]), token))[:count]
        assert ids[row].tolist() == expected
        assert values[row].tolist() == scores[row, expected].tolist()
    value, token = best_token(scores)
    assert token.tolist() == best_tokens(scores, 1)[1][:, 0].tolist()
    assert torch.equal(value, scores.amax(-1))


@pytest.mark.parametrize("vocab", [3, 64, 300, 8192])
@pytest.mark.parametrize("count", [1, 8])
def test_bounds_of_scores_that_were_lowered_since_change_nothing(vocab, count):
    torch.manual_seed(vocab + count)
    scores = torch.randint(-9, 9, (9, vocab)).float()
    bounds = torch.stack([block.amax(1) for block in scores.split(BLOCK, dim=1)], dim=1)
    scores[torch.rand(9, vocab) < 0.5] = float("-inf")
    for found, expected in zip(best_tokens(scores, count, bounds), best_tokens(scores, count), strict=True):
        assert torch.equal(found, expected)
