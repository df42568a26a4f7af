"""AdamW over a flat buffer, and what decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training.flat import ALIGNMENT, Layout
from tfray.training.optimizer import EPSILON, FlatAdamW, total_norm


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


def test_the_norm_of_large_slices_is_as_exact_as_that_of_small_ones():
    random = torch.Generator().manual_seed(3)
    gradients = [torch.randn(size, generator=random) for size in ((4096, 4096), (0, 5), (7,))]
    exact = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]).double())
    assert float(total_norm(gradients)) == pytest.approx(float(exact), rel=1e-4)
