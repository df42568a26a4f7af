"""The learning rate as a function of the step, and what decays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training.flat import ALIGNMENT, Layout
from tfray.training.optimizer import EPSILON, FlatAdamW, learning_rate

SCHEDULES = st.sampled_from(["inverse_sqrt", "cosine"])


def rates(steps: int, **changed: Any) -> list[float]:
    config = TrainingConfig(**changed)
    return [learning_rate(step, steps, config) for step in range(steps)]


@given(schedule=SCHEDULES, warmup=st.integers(1, 200), peak=st.floats(1e-5, 1.0))
def test_warm_up_rises_in_equal_parts_to_the_peak(schedule: str, warmup: int, peak: float):
    found = rates(warmup, schedule=schedule, warmup_steps=warmup, learning_rate=peak)
    assert found == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])


@given(schedule=SCHEDULES, warmup=st.integers(1, 200), after=st.integers(20, 400))
def test_the_schedule_joins_the_warm_up_without_a_jump_and_only_falls(schedule: str, warmup: int, after: int):
    found = rates(warmup + after, schedule=schedule, warmup_steps=warmup, learning_rate=1.0)
    assert max(found) == pytest.approx(1.0)
    assert found[warmup] == pytest.approx(1.0, abs=1 / warmup)
    decay = found[warmup - 1 :]
    assert all(earlier >= later > 0 for earlier, later in pairwise(decay))


@given(warmup=st.integers(0, 200), after=st.integers(200, 400))
def test_cosine_ends_near_zero_and_is_half_way_in_the_middle(warmup: int, after: int):
    found = rates(warmup + after, schedule="cosine", warmup_steps=warmup, learning_rate=1.0)
    assert found[-1] < 1e-4
    assert found[warmup + after // 2] == pytest.approx(0.5, abs=0.01)


def test_cosine_stays_at_zero_beyond_the_estimated_end():
    config = TrainingConfig(schedule="cosine", warmup_steps=10)
    assert learning_rate(150, 100, config) == pytest.approx(0.0, abs=1e-12)


def test_inverse_sqrt_halves_in_four_times_the_steps():
    found = rates(400, schedule="inverse_sqrt", warmup_steps=25, learning_rate=1.0)
    assert found[99] == pytest.approx(found[399] * 2) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine"])
def test_without_warm_up_the_first_step_has_the_peak(schedule: str):
    assert rates(100, schedule=schedule, warmup_steps=0, learning_rate=0.3)[0] == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine"])
def test_training_may_end_within_the_warm_up(schedule: str):
    assert rates(5, schedule=schedule, warmup_steps=10, learning_rate=1.0) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def some_model(**options: Any) -> Transformer:
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=15)
    return Transformer(Architecture(**sizes, **options))


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "norm_position": "post", "activation": "swiglu"}])
def test_matrices_decay_and_embedding_norms_and_biases_do_not(options: dict[str, Any]):
    model = some_model(**options)
    layout = Layout.of(model)
    assert layout.shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = torch.ones(layout.size)
    optimizer = FlatAdamW(weights, layout.decayed, TrainingConfig(weight_decay=0.25))
    optimizer.step(torch.zeros_like(weights), 0.1, 1.0, 0)
    for name, found in layout.views(weights).items():
        is_matrix = name.endswith("weight") and "norm" not in name and "tokens" not in name
        torch.testing.assert_close(found, torch.full_like(found, 1 - 0.1 * 0.25 if is_matrix else 1.0))


def test_parameters_lie_apart_and_aligned_in_the_buffer():
    layout = Layout.of(some_model())
    buffer = torch.zeros(layout.size)
    for view in layout.views(buffer).values():
        assert view.storage_offset() % ALIGNMENT == 0 and view.is_contiguous() and not view.any()
        view.fill_(1)
    assert int(buffer.sum()) == sum(shape.numel() for shape in layout.shapes.values())


@pytest.mark.parametrize("shrink", [1.0, 0.3])
def test_steps_are_those_of_torchs_adamw(shrink: float):
    torch.manual_seed(0)
    decayed, others = torch.randn(40), torch.randn(17)
    flat = torch.cat([decayed, others])
    config = TrainingConfig(weight_decay=0.3)
    optimizer = FlatAdamW(flat, len(decayed), config)
    groups = [{"params": [decayed], "weight_decay": 0.3}, {"params": [others], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, betas=config.adam_betas, eps=EPSILON, foreach=False, fused=False)
    for count, rate in enumerate([0.1, 0.02, 0.05]):
        gradient = torch.randn(len(flat))
        decayed.grad, others.grad = (part.clone() * shrink for part in gradient.split([40, 17]))
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        optimizer.step(gradient, rate, shrink, count)
        torch.testing.assert_close(flat, torch.cat([decayed, others]), atol=1e-6, rtol=1e-5)
