"""What decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training.optimizer import make_optimizer


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
