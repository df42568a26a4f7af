"""Recomputed and compiled layers give the same loss and gradients, in less memory or less time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.dropout import mask_pool
from tfray.model.transformer import Transformer
from tfray.training import layers
from tfray.training.layers import can_compile, compile_layer, wants_compiling
from tfray.training.model import TrainingModel
from tfray.training.replicated import Replicated

LAYERS = 3
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def some_batch(rows: int = 6, source: int = 8, target: int = 12) -> Batch:
    random = torch.Generator().manual_seed(rows)
    sizes = (source, target, target)
    return Batch(*(torch.randint(3, 30, (rows, length), generator=random) for length in sizes))


def new_model(dropout: float = 0.0, device: str = "cpu", **config: Any) -> TrainingModel:
    torch.manual_seed(0)
    sizes = dict(d_model=32, num_heads=2, d_ff=64, encoder_layers=LAYERS, decoder_layers=LAYERS, vocab_size=30)
    transformer = Transformer(Architecture(**sizes, dropout=dropout)).to(device)  # type: ignore[arg-type]
    return TrainingModel(transformer, TrainingConfig(**config)).train()


def results(model: TrainingModel, batch: Batch) -> tuple[Tensor, ...]:
    """Return the objective and the gradients."""
    torch.manual_seed(5)
    loss = model(batch)
    return loss.objective.detach(), *torch.autograd.grad(loss.objective, list(model.parameters()))


def saved_bytes(model: TrainingModel, batch: Batch) -> int:
    """Return the bytes that are kept for the backward of a model with dropout 0.1, weights not counted."""
    lasting = [*model.parameters(), mask_pool(0.1, torch.float32)]  # dropout's masks are there anyway
    storages = {tensor.untyped_storage().data_ptr() for tensor in lasting}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)
    assert loss.objective.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_neither_loss_nor_gradients_nor_dropout(dropout: float):
    kept, recomputed = (
        results(new_model(dropout, activation_checkpointing=is_on), some_batch()) for is_on in (False, True)
    )
    for one, other in zip(kept, recomputed, strict=True):
        assert torch.equal(one, other)


def test_dropout_is_the_same_for_what_comes_after_a_recomputation():
    def second_objective(is_on: bool) -> Tensor:
        model = new_model(0.3, activation_checkpointing=is_on)
        results(model, some_batch())
        return model(some_batch()).objective.detach()  # no seed between the two

    assert torch.equal(second_objective(True), second_objective(False))


def test_recomputing_keeps_less_than_a_third():
    kept, recomputed = (
        saved_bytes(new_model(0.1, activation_checkpointing=is_on), some_batch(40, 24, 24)) for is_on in (False, True)
    )
    assert 0 < recomputed < kept / 3


def test_a_state_trains_alike_with_recomputing():
    def trained(is_on: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        sizes = dict(d_model=32, num_heads=2, d_ff=64, encoder_layers=1, decoder_layers=1, vocab_size=30)
        transformer = Transformer(Architecture(**sizes))  # type: ignore[arg-type]
        state = Replicated(transformer, TrainingConfig(activation_checkpointing=is_on), torch.float32)
        state.model.train()
        for _ in range(2):
            state.accumulate(some_batch(), 0.01, is_last=True)
            state.reduce()
            state.update(0.01, 1.0)
        return state.weights()

    plain, recomputed = trained(False), trained(True)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_without_gradients_nothing_is_recomputed(monkeypatch: pytest.MonkeyPatch):
    model = new_model(activation_checkpointing=True)
    monkeypatch.setattr(layers, "checkpoint", None)
    with torch.no_grad():
        assert model.eval()(some_batch()).objective > 0


@pytest.mark.parametrize(("choice", "is_compiled"), [("auto", False), ("no", False), ("yes", True)])
def test_on_a_cpu_layers_are_compiled_only_where_asked_for(
    choice: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[object] = []
    monkeypatch.setattr(layers, "compile_layer", compiled.append)
    new_model(compile=choice)
    assert len(compiled) == (2 * LAYERS if is_compiled else 0)


@pytest.mark.parametrize("works", [True, False])
def test_on_a_gpu_auto_compiles_unless_that_does_not_work_there_and_says_so(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def compile_here(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        if not works:
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")
        return function

    monkeypatch.setattr(torch, "compile", compile_here)
    monkeypatch.setattr(layers, "can_compile", lambda device: can_compile.__wrapped__(torch.device("cpu")))
    assert wants_compiling(TrainingConfig(compile="auto"), torch.device("cuda")) is works
    assert [record.getMessage() for record in caplog.records] == (
        []
        if works
        else [
            "training.compile: torch.compile does not work here, training goes on without: Failed to find C compiler."
        ]
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compiled_layers_give_the_same_and_are_compiled_a_few_times_for_all_shapes(
    activation_checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(layers, "compile_layer", partial(compile_layer, backend=counter))
    model = new_model(activation_checkpointing=activation_checkpointing, compile="yes")
    plain = new_model(compile="no")
    for shape in ((6, 8, 12), (5, 12, 8), (9, 20, 24), (3, 4, 16), (17, 16, 20)):
        for found, expected in zip(results(model, some_batch(*shape)), results(plain, some_batch(*shape)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2, "one for each kind of layer, whatever the shapes"
    torch._dynamo.reset()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_on_a_gpu_compiled_layers_give_the_loss_and_gradients_of_plain_ones(activation_checkpointing: bool):
    torch._dynamo.reset()
    compiled = new_model(device="cuda", compile="auto", activation_checkpointing=activation_checkpointing)
    plain = new_model(device="cuda", compile="no")
    for shape in ((6, 8, 12), (5, 12, 8), (9, 20, 24)):
        batch = some_batch(*shape).to(torch.device("cuda"))
        for found, expected in zip(results(compiled, batch), results(plain, batch), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_recomputing_draws_the_same_dropout_and_uses_less_memory():
    batch = some_batch(64, 48, 48).to(torch.device("cuda"))
    outcomes, peaks = [], []
    for is_on in (False, True):
        model = new_model(0.3, "cuda", compile="no", activation_checkpointing=is_on)
        torch.cuda.reset_peak_memory_stats()
        outcomes.append(results(model, batch))
        peaks.append(torch.cuda.max_memory_allocated())
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert peaks[1] < peaks[0]
