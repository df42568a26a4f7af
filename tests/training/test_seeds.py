"""Seeds decide what is drawn, whatever their size and wherever it is drawn."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tfray.model.dropout import Dropout
from tfray.training.seeds import dropout_seed, weights_seed

SEEDS = st.integers(0, 2**70) | st.integers(0, 50)


def dropped(seed: int) -> torch.Tensor:
    """Return what dropout leaves on a CPU of four layers' ones."""
    torch.manual_seed(seed)
    layer = Dropout(0.5).train()
    return torch.stack([layer(torch.ones(64)) for _ in range(4)])


@given(SEEDS, SEEDS, st.integers(0, 2**31), st.integers(0, 500))
def test_another_seed_gives_other_dropout_and_other_weights_on_a_cpu(seed: int, other: int, step: int, lane: int):
    is_same = seed == other
    assert torch.equal(dropped(dropout_seed(seed, step, lane)), dropped(dropout_seed(other, step, lane))) == is_same
    drawn = [torch.manual_seed(weights_seed(each)) and torch.rand(4) for each in (seed, other)]
    assert torch.equal(*drawn) == is_same


@given(st.integers(0, 2**40))
def test_no_micro_batch_has_the_dropout_of_another_step_or_lane(seed: int):
    low_bits = [dropout_seed(seed, step, lane) % 2**32 for step in range(40) for lane in range(8)]
    assert len(set(low_bits)) > 318, "of so few, none should be the same by chance"
    assert weights_seed(seed) not in {dropout_seed(seed, step, lane) for step in range(40) for lane in range(8)}
