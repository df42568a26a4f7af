"""One optimizer step: the same update however its examples are laid out."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tfray.batches.batch import Batch, collate
from tfray.batches.plan import padded_length
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.training.replicated import Replicated
from tfray.training.step import StepMetrics, train_step

VOCAB = 15
CONFIG = TrainingConfig(gradient_clip=0.0, label_smoothing=0.1)
Pairs = list[tuple[list[int], list[int]]]


def some_pairs(count: int) -> Pairs:
    choose = random.Random(2)

    def ids() -> list[int]:
        return choose.choices(range(3, VOCAB), k=choose.randint(1, 9))

    return [([*ids(), 2], ids()) for _ in range(count)]


PAIRS = some_pairs(12)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(
        np.array([value for row in rows for value in row], np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
    )


def batch_of(pairs: Pairs) -> Batch:
    return collate(ragged([source for source, _ in pairs]), ragged([target for _, target in pairs]))


class Descent:
    """In place of AdamW: the update is exactly the gradient times the rate."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def step(self, gradient: Tensor, rate: float, shrink: float, updates: int) -> None:
        self.weights.sub_(gradient, alpha=rate * shrink)


def new_state(
    dropout: float = 0.0, config: TrainingConfig = CONFIG, dtype: torch.dtype = torch.float32, is_adam: bool = False
) -> Replicated:
    """Return a state whose update is its gradient, or AdamW's."""
    torch.manual_seed(3)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=VOCAB)
    state = Replicated(Transformer(Architecture(**sizes, dropout=dropout)), config, dtype)  # type: ignore[arg-type]
    state.model.train()
    if not is_adam:
        state.optimizer = Descent(state.master)  # type: ignore[assignment]
    return state


def update(
    lanes: list[Pairs],
    state: Replicated | None = None,
    rate: float = 1.0,
    config: TrainingConfig = CONFIG,
    **options: Any,
) -> tuple[Tensor, StepMetrics]:
    """Return how one step moves the weights, and its metrics."""
    state = state or new_state(config=config)
    before = state.master.clone()
    batches = [batch_of(pairs) for pairs in lanes]
    metrics = train_step(state, batches, list(range(len(lanes))), rate, config, **options)
    return state.master - before, metrics


@pytest.mark.parametrize("cuts", [[6], [1], [11], [3, 4, 9], list(range(1, 12))])
def test_the_update_does_not_depend_on_how_examples_are_split_over_lanes(cuts: list[int]):
    lanes = [PAIRS[start:stop] for start, stop in zip([0, *cuts], [*cuts, 12], strict=True)]
    expected, of_one = update([PAIRS])
    found, of_many = update(lanes)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert of_many.negative_log_likelihood == pytest.approx(of_one.negative_log_likelihood, rel=1e-5)
    assert of_many.gradient_norm == pytest.approx(of_one.gradient_norm, rel=1e-4)
    assert of_many[1:3] == of_one[1:3]


def test_the_order_of_lanes_does_not_matter():
    lanes = [PAIRS[:5], PAIRS[5:7], PAIRS[7:]]
    torch.testing.assert_close(update(lanes)[0], update(lanes[::-1])[0], atol=1e-6, rtol=1e-4)


def test_the_objective_is_the_mean_over_target_tokens_and_padding_does_not_count():
    state = new_state()
    transformer = state.model.transformer
    batch = batch_of(PAIRS)
    logits = transformer(batch.source_ids, batch.target_ids).flatten(0, 1)
    mean = torch.nn.functional.cross_entropy(logits, batch.label_ids.flatten(), ignore_index=0, label_smoothing=0.1)
    names, parameters = zip(*transformer.named_parameters(), strict=True)
    moved = state.layout.views(update([PAIRS[:4], PAIRS[4:]])[0])
    for name, gradient in zip(names, torch.autograd.grad(mean, parameters), strict=True):
        torch.testing.assert_close(moved[name], -gradient, atol=1e-6, rtol=1e-4)


def test_twice_the_same_examples_give_the_same_update_and_twice_the_sums():
    once, metrics = update([PAIRS])
    twice, doubled = update([PAIRS, PAIRS])
    torch.testing.assert_close(twice, once, atol=1e-6, rtol=1e-4)
    assert doubled.negative_log_likelihood == pytest.approx(2 * metrics.negative_log_likelihood, rel=1e-5)
    assert doubled[1:4] == tuple(2 * count for count in metrics[1:4])


def test_metrics_count_tokens():
    _, metrics = update([PAIRS[:4], PAIRS[4:]])
    assert metrics.target_tokens == sum(len(target) + 1 for _, target in PAIRS)
    assert metrics.source_tokens == sum(len(source) for source, _ in PAIRS)
    sizes = [
        (len(pairs), max(len(s) for s, _ in pairs), max(len(t) + 1 for _, t in pairs))
        for pairs in (PAIRS[:4], PAIRS[4:])
    ]
    assert metrics.padded_tokens == sum(
        rows * (padded_length(source) + padded_length(target)) for rows, source, target in sizes
    )


def test_the_rate_is_the_one_asked_for():
    torch.testing.assert_close(update([PAIRS], rate=0.25)[0], 0.25 * update([PAIRS])[0], atol=1e-6, rtol=1e-4)


def test_clipping_shortens_a_long_gradient_and_keeps_its_direction_and_a_short_one_as_it_is():
    free, metrics = update([PAIRS])
    norm = free.norm().item()
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-4)
    short, clipped = update([PAIRS], config=TrainingConfig(gradient_clip=norm / 4))
    torch.testing.assert_close(short, free / 4, atol=1e-5, rtol=1e-3)
    assert clipped.gradient_norm == pytest.approx(norm, rel=1e-4), "the norm before clipping is reported"
    torch.testing.assert_close(
        update([PAIRS], config=TrainingConfig(gradient_clip=2 * norm))[0], free, atol=1e-6, rtol=1e-4
    )


def test_gradients_do_not_leak_into_the_next_step():
    state = new_state()
    first, _ = update([PAIRS], state, rate=0.0)
    second, _ = update([PAIRS], state)
    assert not first.any()
    torch.testing.assert_close(second, update([PAIRS])[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_moving_average_follows_the_weights(decay: float):
    config = TrainingConfig(gradient_clip=0.0, ema_decay=decay)
    state = new_state(config=config)
    assert state.average is not None
    expected = state.average.clone()
    for _ in range(3):
        update([PAIRS], state, config=config)
        expected = decay * expected + (1 - decay) * state.master
        torch.testing.assert_close(state.average, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(state.average, state.master, atol=1e-4)


def test_the_moving_average_does_not_change_training():
    config = TrainingConfig(gradient_clip=0.0, ema_decay=0.9)
    torch.testing.assert_close(update([PAIRS], config=config)[0], update([PAIRS])[0])


def test_dropout_follows_from_the_lanes_seeds_and_from_nothing_before():
    def step(seeds: list[int], noise: int) -> Tensor:
        state = new_state(dropout=0.3)
        torch.manual_seed(noise)
        train_step(state, [batch_of(PAIRS[:6]), batch_of(PAIRS[6:])], seeds, 1.0, CONFIG)
        return state.master

    assert torch.equal(step([1, 2], noise=5), step([1, 2], noise=6))
    assert not torch.allclose(step([1, 2], noise=5), step([1, 3], noise=5), atol=1e-6)


class Verdicts:
    """Judges steps by a list made beforehand, and keeps what it was shown."""

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts, self.shown = list(verdicts), []

    def judge(self, norm: float, loss: float) -> bool:
        self.shown.append((norm, loss))
        return self.verdicts.pop(0)


def test_a_step_that_is_judged_a_spike_leaves_everything_as_it_was_and_the_next_one_counts():
    config = TrainingConfig(ema_decay=0.9)
    state = new_state(config=config, is_adam=True)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    spikes = Verdicts(True, False)
    moved, metrics = update([PAIRS[:7], PAIRS[7:]], state, config=config, spikes=spikes)
    assert metrics.is_skipped and metrics.is_finite and not moved.any() and state.updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert spikes.shown == [(metrics.gradient_norm, metrics.negative_log_likelihood / metrics.target_tokens)]
    moved, metrics = update([PAIRS], state, config=config, spikes=spikes)
    assert not metrics.is_skipped and state.updates == 1
    torch.testing.assert_close(moved, update([PAIRS], new_state(config=config, is_adam=True), config=config)[0])


def test_a_loss_that_is_no_number_shows_and_leaves_the_weights_as_they_were():
    state = new_state()
    with torch.no_grad():
        state.model.transformer.embedding.tokens.weight[PAIRS[0][0][0]] = float("nan")
    before = state.master.clone()
    metrics = train_step(state, [batch_of(PAIRS[:1])] * 2, [0, 1], 1.0, CONFIG)
    assert not metrics.is_finite and metrics.is_skipped
    assert math.isnan(metrics.negative_log_likelihood)
    assert torch.equal(state.master.isnan(), before.isnan())


def test_the_loss_is_the_sum_of_those_of_the_lanes():
    lanes = [PAIRS[:3], PAIRS[3:]]
    _, metrics = update(lanes)
    alone = [update([lane])[1].negative_log_likelihood for lane in lanes]
    assert metrics.negative_log_likelihood == pytest.approx(sum(alone), rel=1e-5)


def losses_of(dtype: torch.dtype, steps: int, rate: float) -> list[float]:
    state = new_state(dropout=0.1, dtype=dtype, is_adam=True)
    lanes = [PAIRS[:5], PAIRS[5:]]
    found = [update(lanes, state, rate=rate)[1] for _ in range(steps)]
    return [metrics.negative_log_likelihood / metrics.target_tokens for metrics in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_steps_give_bit_equal_losses_again(dtype: torch.dtype):
    assert losses_of(dtype, 12, 1e-2) == losses_of(dtype, 12, 1e-2)


def test_bf16_learns_as_far_as_fp32():
    wide, narrow = (losses_of(dtype, 150, 1e-2) for dtype in (torch.float32, torch.bfloat16))
    assert wide[-1] < 0.6 * wide[0]
    assert statistics.mean(narrow[-20:]) == pytest.approx(statistics.mean(wide[-20:]), rel=0.03)
    assert narrow[0] == pytest.approx(wide[0], rel=0.01)


def test_training_learns_a_step_at_a_time():
    state = new_state()
    losses = [update([PAIRS], state, rate=0.3)[1].negative_log_likelihood for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
