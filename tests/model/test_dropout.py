"""Dropout, whatever makes its mask."""

from __future__ import annotations

import pytest
import torch

from tfray.model.dropout import Dropout

RATES = [0.1, 0.3, 0.5]


def dropped(rate: float, seed: int = 0, count: int = 200_000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(rate).train()(torch.ones(count, dtype=dtype))


@pytest.mark.parametrize("rate", RATES)
def test_it_drops_its_rate_and_scales_the_others_so_that_the_mean_stays(rate: float):
    result = dropped(rate)
    assert (result == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert result.mean().item() == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(result[result != 0].unique(), torch.tensor([1 / (1 - rate)]))


@pytest.mark.parametrize("rate", RATES)
def test_bf16_keeps_the_mean_too(rate: float):
    result = dropped(rate, dtype=torch.bfloat16)
    assert result.dtype == torch.bfloat16
    assert result.float().mean().item() == pytest.approx(1.0, abs=0.02)


def test_neighbours_are_dropped_independently():
    kept = (dropped(0.5).view(400, 500) != 0).float() - 0.5
    assert abs((kept[:, 1:] * kept[:, :-1]).mean().item()) < 0.005
    assert abs((kept[1:] * kept[:-1]).mean().item()) < 0.005


def test_the_same_seed_drops_the_same_and_another_seed_or_call_does_not():
    assert torch.equal(dropped(0.3), dropped(0.3))
    assert not torch.equal(dropped(0.3), dropped(0.3, seed=1))
    torch.manual_seed(0)
    dropout = Dropout(0.3)
    assert not torch.equal(dropout(torch.ones(1000)), dropout(torch.ones(1000)))


def test_it_is_off_in_evaluation_and_at_rate_zero():
    states = torch.randn(10, 10)
    assert torch.equal(Dropout(0.5).eval()(states), states)
    assert torch.equal(Dropout(0.0).train()(states), states)


def test_the_gradient_passes_where_the_activation_did():
    states = torch.ones(40, 25, requires_grad=True)
    result = Dropout(0.4).train()(states)
    result.sum().backward()
    assert result.shape == states.shape
    torch.testing.assert_close(states.grad, result.detach())
