"""The best tokens, exactly, with equal scores in the order of their ids."""

from __future__ import annotations

import pytest
import torch

from tfray.generation.select import best_token, best_tokens


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
