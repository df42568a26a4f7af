"""On a GPU no training step puts a tensor on the wrong device: shown on a pretended one, without compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretended_gpu import PretendedGpu
from tests.training.test_packed_training import VOCAB, some_pairs
from tfray.batches.batch import Batch, collate
from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.training.replicated import Replicated
from tfray.training.step import StepMetrics, train_step


def packed(source: Ragged, target: Ragged) -> Batch:
    return collate_packed(source, target, Widths(16, 16))


def three_steps(
    device: str, config: TrainingConfig, shape: dict[str, Any], collated: Callable[..., Batch], dtype: torch.dtype
) -> tuple[list[StepMetrics], dict[str, torch.Tensor]]:
    """Return what three steps of two micro-batches do, and the weights after them."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, dropout=0.0)
    transformer = Transformer(Architecture(**sizes | shape, vocab_size=VOCAB))
    state = Replicated(transformer.to(device), config, dtype)
    assert state.device.type == device
    state.model.train()
    batches = [[collated(*some_pairs(6, 2 * step + lane)) for lane in range(2)] for step in range(3)]
    metrics = [train_step(state, lanes, [0, 1], 0.1, config) for lanes in batches]
    with state.averaged():
        return metrics, state.weights()


class Waits(TorchDispatchMode):
    """Notes what a GPU is waited for: places of a mask, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        places = [part for value in args if isinstance(value, list | tuple) for part in value]
        by_mask = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in places)
        if func.name() in ("aten::nonzero", "aten::_local_scalar_dense") or ("index" in func.name() and by_mask):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_is_waited_for_once() -> None:
    sizes: dict[str, Any] = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, dropout=0.0)
    state = Replicated(Transformer(Architecture(**sizes, vocab_size=VOCAB)), TrainingConfig(), torch.float32)
    state.model.train()
    with Waits() as waits:
        state.accumulate(collate(*some_pairs(6, 1)), 1.0, is_last=True)
    assert waits.names == ["aten::nonzero"], "which forward and backward share"


def test_a_gpu_is_kept_from_an_attention_that_makes_a_plan_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", wanted.append)
    three_steps("cpu", TrainingConfig(), {}, collate, torch.float32)
    assert wanted == []
    with PretendedGpu():
        three_steps("cuda", TrainingConfig(compile="no"), {}, collate, torch.float32)
    assert wanted == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("settings", "shape", "collated"),
    [
        (dict(ema_decay=0.5, z_loss=1e-4), {}, collate),
        (dict(), dict(positions="rotary", norm="rms", activation="swiglu"), collate),
        (dict(), dict(norm_position="post"), packed),
        (dict(r_drop=1.0), dict(dropout=0.3), collate),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # a function's address is another in each process
)
def test_a_training_step_stays_on_its_device_and_does_what_it_does_on_a_cpu(
    settings: dict[str, Any], shape: dict[str, Any], collated: Callable[..., Batch], dtype: torch.dtype
) -> None:
    config = TrainingConfig(compile="no", **settings)
    with PretendedGpu():
        found, weights = three_steps("cuda", config, shape, collated, dtype)
    expected, wanted = three_steps("cpu", config, shape, collated, dtype)
    assert all(step.is_finite and not step.is_skipped for step in found)
    assert not any(weight.is_cuda for weight in weights.values())
    if not shape.get("dropout"):  # it is drawn in another way
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        for one, other in zip(found, expected, strict=True):
            assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=tolerance)
        assert weights.keys() == wanted.keys()
