"""R-Drop against the paper's formula under plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.training import loss as loss_module
from tfray.training.loss import Loss, smoothed_cross_entropy
from tfray.training.model import TrainingModel
from tfray.training.r_drop import neighbours_divergence, side_by_side, twice

ARCHITECTURE = Architecture(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=30)


def papers_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float, r_drop: float
) -> Tensor:
    """Return half of the paper's objective, from logits that all exist at once."""
    logits = hidden @ weight.T
    p, q = logits.log_softmax(-1).chunk(2)
    entropy = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    z = z_loss * logits.logsumexp(-1).square().sum()
    directions = (F.kl_div(*pair, reduction="sum", log_target=True) for pair in ((q, p), (p, q)))
    return (entropy + z + r_drop * sum(directions) / 2) / 2


def r_drop_loss(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float, r_drop: float) -> Loss:
    """Return ours, of the same arguments."""
    loss = smoothed_cross_entropy(side_by_side(hidden), weight, side_by_side(labels), smoothing, z_loss, r_drop)
    return Loss(*(value / 2 for value in loss))


def problem(tokens: int, dtype: torch.dtype = torch.float64, apart: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states of tokens predicted twice, output weight, and labels twice."""
    random = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, 8, generator=random, dtype=torch.float64)
    hidden = torch.cat([states, states + apart * torch.randn(tokens, 8, generator=random, dtype=torch.float64)])
    weight = torch.randn(40, 8, generator=random, dtype=torch.float64)
    labels = torch.randint(40, (tokens,), generator=random).repeat(2)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(
    tokens=st.integers(1, 40),
    smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    r_drop=st.sampled_from([0.5, 5.0]),
)
def test_value_and_gradients_are_those_of_the_papers_objective(
    tokens: int, smoothing: float, z_loss: float, r_drop: float, dtype: torch.dtype
):
    hidden, weight, labels = problem(tokens, dtype)
    ours = r_drop_loss(hidden, weight, labels, smoothing, z_loss, r_drop)
    theirs = papers_loss(hidden, weight, labels, smoothing, z_loss, r_drop)
    # our sums are fp32, whatever the logits are; the gradients by the hidden states are not sums
    torch.testing.assert_close(ours.objective, theirs, rtol=1e-5, atol=1e-3, check_dtype=False)
    found = torch.autograd.grad(ours.objective, (hidden, weight))
    expected = torch.autograd.grad(theirs, (hidden, weight))
    tolerance = dict(rtol=1e-6, atol=1e-6) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4, check_dtype=False)


@given(st.integers(1, 20), st.sampled_from([0.0, 0.5, 4.0]))
def test_the_divergence_and_its_gradient_are_those_of_autograd_in_fp64(pairs: int, apart: float):
    random = torch.Generator().manual_seed(pairs)
    base = torch.randn(pairs, 1, 30, generator=random, dtype=torch.float64)
    logits = (base + apart * torch.randn(pairs, 2, 30, generator=random, dtype=torch.float64)).flatten(0, 1)
    logits.requires_grad_()
    p, q = logits.log_softmax(-1).unflatten(0, (-1, 2)).unbind(1)
    expected = ((p.exp() - q.exp()) * (p - q)).sum() / 2
    with torch.no_grad():
        value, gradient = neighbours_divergence(logits)
    torch.testing.assert_close(value, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-9, atol=1e-12)


def test_bf16_gives_nearly_the_gradients_of_fp32():
    exact, narrow = problem(200, torch.float32), problem(200, torch.bfloat16)
    gradients = [
        torch.autograd.grad(r_drop_loss(*states, 0.1, 0.0, 5.0).objective, states[:2]) for states in (exact, narrow)
    ]
    for right, near in zip(*gradients, strict=True):
        assert (near.float() - right).norm() < 0.03 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_gives_what_torch_gives(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    states = problem(90, dtype)
    with_kernel = r_drop_loss(*states, 0.1, 1e-3, 3.0)
    found = torch.autograd.grad(with_kernel.objective, states[:2])
    monkeypatch.setattr(loss_module.native, "find", lambda *rest: None)
    by_torch = r_drop_loss(*states, 0.1, 1e-3, 3.0)
    near = dict(rtol=1e-5, atol=1e-3) if dtype == torch.float32 else dict(rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(with_kernel, by_torch, **near)
    for own, expected in zip(found, torch.autograd.grad(by_torch.objective, states[:2]), strict=True):
        assert (own - expected).norm() < (1e-5 if dtype == torch.float32 else 0.03) * expected.norm()


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_chunks_keep_twins_together(tokens: int, monkeypatch: pytest.MonkeyPatch):
    hidden, weight, labels = problem(tokens)
    whole = r_drop_loss(hidden, weight, labels, 0.1, 1e-3, 2.0)
    expected = torch.autograd.grad(whole.objective, (hidden, weight))
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 5 * 40 * 8)  # five rows, were it not for twins
    chunked = r_drop_loss(hidden, weight, labels, 0.1, 1e-3, 2.0)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-4)
    for found, right in zip(torch.autograd.grad(chunked.objective, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def some_batch() -> Batch:
    return Batch(
        torch.tensor([[5, 6, 2, 0], [7, 8, 9, 2]]),
        torch.tensor([[1, 6, 7, 0], [1, 8, 9, 10]]),
        torch.tensor([[6, 7, 2, 0], [8, 9, 10, 2]]),
    )


def model(dropout: float, **config: float) -> TrainingModel:
    torch.manual_seed(0)
    architecture = Architecture(**{**vars(ARCHITECTURE), "dropout": dropout})
    return TrainingModel(Transformer(architecture), TrainingConfig(**config)).train()  # type: ignore[arg-type]


def gradients(model: TrainingModel, objective: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(objective, list(model.parameters())))


def test_a_model_passes_twice_with_other_dropout_and_learns_what_the_paper_says():
    batch, ours = some_batch(), model(0.3, r_drop=3.0)
    torch.manual_seed(4)
    loss = ours(batch)
    torch.manual_seed(4)
    both, transformer = twice(batch), ours.transformer
    hidden = transformer.decode(both.target_ids, transformer.encode(both.source_ids))[both.label_ids != 0]
    assert not torch.allclose(*hidden.chunk(2))
    expected = papers_loss(hidden, transformer.output_weight, both.label_ids[both.label_ids != 0], 0.1, 0.0, 3.0)
    torch.testing.assert_close(loss.objective, expected)
    for found, right in zip(gradients(ours, loss.objective), gradients(ours, expected), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_loss_and_another_does_not():
    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model_(some_batch()).objective.item()

    model_ = model(0.3, r_drop=3.0)
    assert loss(1) == loss(1) != loss(2)


def test_without_dropout_it_changes_nothing():
    plain, twofold = model(0.0), model(0.0, r_drop=5.0)
    losses = [each(some_batch()) for each in (plain, twofold)]
    torch.testing.assert_close(losses[0], losses[1])
    pairs = zip(gradients(plain, losses[0].objective), gradients(twofold, losses[1].objective), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_validation_passes_once():
    with torch.no_grad():
        losses = [each.eval()(some_batch()) for each in (model(0.3), model(0.3, r_drop=5.0))]
    torch.testing.assert_close(losses[0], losses[1])
    assert math.isfinite(losses[0].objective)
