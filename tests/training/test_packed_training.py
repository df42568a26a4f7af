"""Pairs that share rows give the loss and the gradients that they give in rows of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tfray.batches.batch import Batch, collate
from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.training.model import TrainingModel

VOCAB = 40


def some_pairs(count: int, seed: int = 0) -> tuple[Ragged, Ragged]:
    random = np.random.default_rng(seed)

    def side(ends: list[int]) -> Ragged:
        rows = [[*random.integers(3, VOCAB, random.integers(1, 9)).tolist(), *ends] for _ in range(count)]
        return Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    return side([2]), side([])


def batches(count: int, widths: Widths) -> tuple[Batch, Batch]:
    """Return the same pairs in rows of their own, and packed."""
    pairs = some_pairs(count)
    alone, packed = collate(*pairs), collate_packed(*pairs, widths)
    assert len(packed.source_ids) < len(alone.source_ids)
    return alone, packed


def results(batch: Batch, **options: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the objective, the likelihood and the gradients of a fresh model."""
    torch.manual_seed(0)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, vocab_size=VOCAB, dropout=0.0)
    model = TrainingModel(Transformer(Architecture(**sizes | options)), TrainingConfig()).train()  # type: ignore[arg-type]
    loss = model(batch)
    gradients = torch.autograd.grad(loss.objective, list(model.parameters()))
    return loss.objective.detach(), loss.negative_log_likelihood, gradients


@pytest.mark.parametrize("widths", [Widths(10, 10), Widths(24, 20), Widths(300, 300)])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_packed_micro_batch_gives_the_loss_and_gradients_of_the_unpacked_one(
    widths: Widths, positions: str, norm_position: str
):
    options = dict(positions=positions, norm_position=norm_position)
    alone, packed = (results(batch, **options) for batch in batches(25, widths))
    torch.testing.assert_close(packed[:2], alone[:2], rtol=1e-6, atol=1e-4)
    for found, expected in zip(packed[2], alone[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_segments_the_same_rows_give_another_loss():
    _, packed = batches(25, Widths(24, 20))
    blind = packed._replace(source_segments=None, target_segments=None)
    assert abs(results(packed)[0] - results(blind)[0]) > 0.1


def test_the_same_holds_without_gradients_where_another_attention_computes():
    alone, packed = batches(25, Widths(24, 20))
    torch.manual_seed(0)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, vocab_size=VOCAB)
    model = TrainingModel(Transformer(Architecture(**sizes)), TrainingConfig()).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(model(packed), model(alone), rtol=1e-6, atol=1e-4)


def test_rows_that_are_full_to_the_last_token_and_rows_that_are_not_are_both_finite():
    for count in range(2, 12):
        pairs = some_pairs(count, seed=count)
        objective, _, gradients = results(collate_packed(*pairs, Widths(12, 12)))
        assert objective.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_r_drop_takes_packed_rows_too():
    _, packed = batches(10, Widths(24, 20))
    model = TrainingModel(
        Transformer(
            Architecture(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=VOCAB)
        ),
        TrainingConfig(r_drop=2.0),
    ).train()
    loss = model(packed)
    assert loss.objective > model.eval()(packed).objective > 0
