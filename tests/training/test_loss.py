"""The chunked loss against torch's cross-entropy."""

from __future__ import annotations

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from tfray.model import native
from tfray.training import loss as loss_module
from tfray.training.loss import ROWS, chunk_rows, chunks, smoothed_cross_entropy, turn_by_torch


def problem(rows: int, vocab: int = 50, d_model: int = 16, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, output weight and labels."""
    random = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, d_model, generator=random) * scale
    weight = torch.randn(vocab, d_model, generator=random)
    labels = torch.randint(vocab, (rows,), generator=random)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def expected(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, labels, label_smoothing=smoothing, reduction="sum")


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every claim holds with the compiled kernel and without it."""
    if request.param == "torch":
        monkeypatch.setattr(native, "find", lambda name, states: None)
    elif native.library() is None:
        pytest.skip("no C compiler")
    return request.param


@given(rows=st.integers(1, 60), smoothing=st.sampled_from([0.0, 0.1, 0.7]), scale=st.sampled_from([0.0, 0.5, 3.0]))
def test_value_and_gradients_are_those_of_cross_entropy(rows: int, smoothing: float, scale: float):
    hidden, weight, labels = problem(rows, scale=scale)
    ours, theirs = (
        smoothed_cross_entropy(hidden, weight, labels, smoothing),
        expected(hidden, weight, labels, smoothing),
    )
    torch.testing.assert_close(ours.objective, theirs, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        ours.negative_log_likelihood, expected(hidden, weight, labels, 0.0), atol=1e-3, rtol=1e-4
    )
    gradients = [torch.autograd.grad(value, (hidden, weight)) for value in (ours.objective, theirs)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [9, 10, 11, 27])
def test_chunks_do_not_show(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 10 * 50 * 4})
    hidden, weight, labels = problem(rows)
    ours, theirs = smoothed_cross_entropy(hidden, weight, labels, 0.1), expected(hidden, weight, labels, 0.1)
    torch.testing.assert_close(ours.objective, theirs, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(
        ours.negative_log_likelihood, expected(hidden, weight, labels, 0.0), atol=1e-2, rtol=1e-4
    )
    gradients = [torch.autograd.grad(value, (hidden, weight)) for value in (ours.objective, theirs)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their, atol=1e-3, rtol=1e-4)


@given(rows=st.integers(1, 3000), vocab=st.integers(2, 90_000), budget=st.integers(1, 1 << 20))
def test_no_more_logits_exist_at_a_time_than_the_budget_holds_or_one_row_needs(rows: int, vocab: int, budget: int):
    hidden, weight = torch.empty(rows, 1), torch.empty(vocab, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_BYTES", {"cpu": budget})
        most, multiple = chunk_rows(hidden, weight)
    parts = list(chunks(rows, most, multiple))
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert max(part.stop - part.start for part in parts) <= most <= max(1, budget // (4 * vocab))
    assert all((part.stop - part.start) % multiple == 0 for part in parts)
    assert multiple == (ROWS if budget // (4 * vocab) >= ROWS else 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_z_loss_pulls_the_softmax_denominator_towards_one(smoothing: float):
    hidden, weight, labels = problem(30)
    loss = smoothed_cross_entropy(hidden, weight, labels, smoothing, z_loss=0.3)
    squares = (hidden @ weight.T).logsumexp(-1).square().sum()
    theirs = expected(hidden, weight, labels, smoothing) + 0.3 * squares
    torch.testing.assert_close(loss.objective, theirs, atol=1e-3, rtol=1e-4)
    plain = smoothed_cross_entropy(hidden, weight, labels, smoothing)
    torch.testing.assert_close(loss.negative_log_likelihood, plain.negative_log_likelihood)
    gradients = [torch.autograd.grad(value, (hidden, weight)) for value in (loss.objective, theirs)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            smoothed_cross_entropy(hidden, weight, labels, smoothing, z_loss=0.3).objective, theirs.detach()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_none_shows_in_loss_and_gradients(dtype: torch.dtype):
    hidden, weight, labels = problem(20)
    hidden, weight = (states.detach().to(dtype).requires_grad_() for states in (hidden, weight))
    with torch.no_grad():
        hidden[3, 2] = float("nan")
    loss = smoothed_cross_entropy(hidden, weight, labels, 0.1)
    assert loss.objective.isnan() and loss.negative_log_likelihood.isnan()
    assert torch.autograd.grad(loss.objective, weight)[0].isnan().any()


@pytest.mark.parametrize("factor", [0.0, -2.0, 0.001])
def test_gradients_scale_with_what_comes_from_above(factor: float):
    hidden, weight, labels = problem(20)
    loss, scaled = (smoothed_cross_entropy(hidden, weight, labels, 0.1).objective for _ in range(2))
    plain = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(plain, torch.autograd.grad(factor * scaled, (hidden, weight)), strict=True):
        torch.testing.assert_close(factor * one, other)


def test_gradients_reach_what_made_the_hidden_states():
    hidden, weight, labels = problem(20)
    losses = (
        smoothed_cross_entropy(hidden.tanh(), weight, labels, 0.1).objective,
        expected(hidden.tanh(), weight, labels, 0.1),
    )
    ours, theirs = (torch.autograd.grad(loss, hidden)[0] for loss in losses)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_reported_likelihood_has_no_gradient():
    loss = smoothed_cross_entropy(*problem(5), 0.1)
    assert loss.objective.requires_grad and not loss.negative_log_likelihood.requires_grad


def test_without_smoothing_the_objective_is_the_likelihood():
    loss = smoothed_cross_entropy(*problem(30), 0.0)
    torch.testing.assert_close(loss.objective, loss.negative_log_likelihood)


def test_bf16_gives_nearly_the_loss_and_gradients_of_fp32():
    hidden, weight, labels = problem(600, scale=0.3)
    narrow = [states.detach().bfloat16().requires_grad_() for states in (hidden, weight)]
    wide = [states.detach().float().requires_grad_() for states in narrow]
    exact, near = (smoothed_cross_entropy(*states, labels, 0.1) for states in (wide, narrow))
    torch.testing.assert_close(near.objective, exact.objective, rtol=0.005, atol=0)
    torch.testing.assert_close(near.negative_log_likelihood, exact.negative_log_likelihood, rtol=0.005, atol=0)
    ours = torch.autograd.grad(near.objective, narrow)
    for our, their in zip(ours, torch.autograd.grad(exact.objective, wide), strict=True):
        assert our.dtype == torch.bfloat16
        assert (our.float() - their).norm() < 0.02 * their.norm()


def test_memory_does_not_grow_with_every_new_number_of_tokens():
    weight = torch.randn(4000, 32, dtype=torch.bfloat16).requires_grad_()
    process, used = psutil.Process(), []
    for tokens in range(500, 800, 3):  # kernels for each of these numbers would take some 200 MB
        hidden = torch.randn(tokens, 32, dtype=torch.bfloat16).requires_grad_()
        labels = torch.randint(4000, (tokens,))
        torch.autograd.grad(smoothed_cross_entropy(hidden, weight, labels, 0.1).objective, (hidden, weight))
        used.append(process.memory_info().rss)
    assert used[-1] - used[len(used) // 2] < 40e6


def test_a_micro_batch_without_labels_counts_nothing():
    hidden, weight, labels = problem(5)
    with torch.no_grad():
        found = smoothed_cross_entropy(hidden[:0], weight, labels[:0], 0.1)
    assert float(found.objective) == float(found.negative_log_likelihood) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_by_torch_the_loss_is_the_same_and_its_chunks_are_compiled_a_few_times_for_all_sizes(
    dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
):
    if way == "kernel":
        pytest.skip("kernels of ours are not compiled by torch")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(turn_by_torch, backend=counter, fullgraph=True)
    monkeypatch.setattr(loss_module, "compiled_turn", lambda: compiled)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 128 * 50 * dtype.itemsize})
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for rows in (100, 230, 700, 64, 330, 500):
        hidden, weight, labels = problem(rows)
        leaves = [states.detach().to(dtype).requires_grad_() for states in (hidden, weight)]
        outcomes = []
        for is_compiled in (True, False):
            loss = smoothed_cross_entropy(*leaves, labels, 0.1, z_loss=0.01, is_compiled=is_compiled)
            outcomes.append((loss.objective, *torch.autograd.grad(loss.objective, leaves)))
        for ours, theirs in zip(*outcomes, strict=True):
            torch.testing.assert_close(ours, theirs, **near)
    assert 1 <= counter.frame_count <= 3, "for the first size, for any, and for a first chunk of several"
