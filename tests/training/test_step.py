"""One optimiser step: the same update however its examples are laid out."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tfray.batches.batch import Batch, Ragged, collate
from tfray.batches.plan import padded_length
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training.step import StepMetrics, TrainingModel, TrainState, train_step

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


def new_state(dropout: float = 0.0, with_average: bool = False) -> TrainState:
    """Return a state whose update is exactly its gradient: SGD at rate 1."""
    torch.manual_seed(3)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=VOCAB)
    model = TrainingModel(Transformer(Architecture(**sizes, dropout=dropout)), CONFIG.label_smoothing, torch.float32)  # type: ignore[arg-type]
    average = [parameter.detach().clone() for parameter in model.parameters()] if with_average else []
    return TrainState(model.train(), torch.optim.SGD(model.parameters(), lr=9.0), average)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def update(
    lanes: list[Pairs], state: TrainState | None = None, rate: float = 1.0, config: TrainingConfig = CONFIG
) -> tuple[Tensor, StepMetrics]:
    """Return how one step moves the weights, and its metrics."""
    state = state or new_state()
    before = flat(state.parameters)
    metrics = train_step(state, [batch_of(pairs) for pairs in lanes], list(range(len(lanes))), rate, config)
    return flat(state.parameters) - before, metrics


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
    transformer: Transformer = state.model.transformer  # type: ignore[assignment]
    batch = batch_of(PAIRS)
    logits = transformer(batch.source_ids, batch.target_ids).flatten(0, 1)
    mean = torch.nn.functional.cross_entropy(logits, batch.label_ids.flatten(), ignore_index=0, label_smoothing=0.1)
    gradient = flat(list(torch.autograd.grad(mean, state.parameters)))
    torch.testing.assert_close(update([PAIRS[:4], PAIRS[4:]])[0], -gradient, atol=1e-6, rtol=1e-4)


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
    state = new_state(with_average=True)
    expected = flat(state.average)
    config = TrainingConfig(gradient_clip=0.0, ema_decay=decay)
    for _ in range(3):
        update([PAIRS], state, config=config)
        expected = decay * expected + (1 - decay) * flat(state.parameters)
        torch.testing.assert_close(flat(state.average), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(flat(state.average), flat(state.parameters), atol=1e-4)


def test_the_moving_average_does_not_change_training():
    torch.testing.assert_close(
        update([PAIRS], new_state(with_average=True), config=TrainingConfig(gradient_clip=0.0, ema_decay=0.9))[0],
        update([PAIRS])[0],
    )


def test_dropout_follows_from_the_lanes_seeds_and_from_nothing_before():
    def step(seeds: list[int], noise: int) -> Any:
        state = new_state(dropout=0.3)
        torch.manual_seed(noise)
        train_step(state, [batch_of(PAIRS[:6]), batch_of(PAIRS[6:])], seeds, 1.0, CONFIG)
        return flat(state.parameters)

    assert torch.equal(step([1, 2], noise=5), step([1, 2], noise=6))
    assert not torch.allclose(step([1, 2], noise=5), step([1, 3], noise=5), atol=1e-6)


def test_training_learns_a_step_at_a_time():
    state = new_state()
    losses = [update([PAIRS], state, rate=0.3)[1].negative_log_likelihood for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
