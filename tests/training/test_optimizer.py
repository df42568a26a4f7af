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
from tfray.training.optimizer import learning_rate, make_optimizer

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


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "norm_position": "post", "activation": "swiglu"}])
def test_matrices_decay_and_embedding_norms_and_biases_do_not(options: dict[str, Any]):
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=15)
    model = Transformer(Architecture(**sizes, **options))  # type: ignore[arg-type]
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters())) == len(decay)
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name and "tokens" not in name
        assert decay[id(parameter)] == (0.25 if is_matrix else 0.0), name


def test_decay_without_gradient_shrinks_a_matrix_by_rate_times_decay():
    layer = torch.nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, TrainingConfig(weight_decay=0.5, learning_rate=0.1))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5))
