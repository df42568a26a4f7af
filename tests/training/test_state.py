"""A restored state goes on as if training had never stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tfray.batches.batch import Batch, Ragged, collate
from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training.optimizer import make_optimizer
from tfray.training.state import averaged_weights, named_tensors
from tfray.training.step import TrainingModel, TrainState, train_step

CONFIG = TrainingConfig(ema_decay=0.9)


def new_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=15)
    transformer = Transformer(Architecture(**sizes, dropout=0.2))  # type: ignore[arg-type]
    model = TrainingModel(transformer, CONFIG.label_smoothing, torch.float32)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    return TrainState(model.train(), make_optimizer(transformer, CONFIG), average)


def some_batch(step: int) -> Batch:
    values = np.random.default_rng(step).integers(3, 15, 12).astype(np.int32)
    rows = Ragged(values, np.array([0, 3, 7, 12]))
    return collate(rows, rows)


def train(state: TrainState, steps: range) -> None:
    for step in steps:
        train_step(state, [some_batch(step)], [step], 1e-2, CONFIG)


def test_training_after_a_restore_continues_bit_for_bit(tmp_path: Path):
    uninterrupted, interrupted, restored = new_state(1), new_state(1), new_state(2)
    train(uninterrupted, range(6))
    train(interrupted, range(3))
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(Progress(step=3), named_tensors(interrupted))
    checkpoints.wait()
    assert checkpoints.load(named_tensors(restored)) == Progress(step=3)
    train(restored, range(3, 6))
    found, expected = named_tensors(restored), named_tensors(uninterrupted)
    assert found.keys() == expected.keys()
    assert {name.split(".")[0] for name in found} == {"weight", "optimizer", "average"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_average_takes_the_place_of_the_weights_for_a_block_and_they_come_back():
    state = new_state(1)
    train(state, range(3))
    before = named_tensors(state)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    with averaged_weights(state):
        assert all(torch.equal(p, kept[f"average.{index}"]) for index, p in enumerate(state.parameters))
        assert not torch.equal(state.parameters[0], kept["weight.0"])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in named_tensors(state).items())
