"""Parameters are counted exactly, and memory is estimated near to what a run takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.batch import Batch
from tfray.batches.plan import Shape
from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig
from tfray.model.architecture import PRESETS, Architecture
from tfray.model.transformer import Transformer
from tfray.training.memory import MemorySetting, activation_elements, count_parameters, estimate_memory
from tfray.training.meter import peak_memory
from tfray.training.replicated import Replicated
from tfray.training.step import train_step

FACTOR = 1.4
"""Within which the estimate is: of a run's resident memory, allocator and kernels included."""
CONFIG = TrainingConfig()


def setting(config: TrainingConfig = CONFIG, **changed: Any) -> MemorySetting:
    return MemorySetting(config, 4, on_gpu=False, workers=1, lanes=1)._replace(**changed)


@given(
    st.sampled_from(["relu", "gelu", "swiglu"]),
    st.sampled_from(["layer", "rms"]),
    st.sampled_from(["pre", "post"]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_parameters_are_counted_by_part(activation: Any, norm: Any, position: Any, encoder: int, decoder: int):
    architecture = Architecture(
        d_model=12, num_heads=2, d_ff=20, encoder_layers=encoder, decoder_layers=decoder, vocab_size=50, max_length=9,
        activation=activation, norm=norm, norm_position=position,
    )  # fmt: skip
    with torch.device("meta"):
        model = Transformer(architecture)
    counts = dict.fromkeys(("embedding", "encoder", "decoder", "norms"), 0)
    for name, parameter in model.named_parameters():
        counts["norms" if "norm" in name else name.partition(".")[0]] += parameter.numel()
    assert count_parameters(architecture) == counts


def batch_of(shape: Shape, vocab: int) -> Batch:
    source, label = (torch.randint(3, vocab, (shape.rows, width)) for width in (shape.source, shape.target))
    return Batch(source, torch.cat([torch.ones(shape.rows, 1, dtype=torch.long), label[:, :-1]], 1), label)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_activations_are_what_autograd_keeps(activation: Any):
    sizes = dict(d_model=64, num_heads=4, d_ff=96, encoder_layers=3, decoder_layers=2, vocab_size=40, max_length=64)
    architecture = Architecture(**sizes, activation=activation, dropout=0.0)  # type: ignore[arg-type]
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = Shape(30, 24, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        state.model(batch_of(shape, 40))
    kept.pop(state.master.untyped_storage().data_ptr(), None)
    assert 4 * activation_elements(architecture, shape, setting()) == pytest.approx(sum(kept.values()), rel=0.1)


def measure(preset: str, shape: Shape, dtype: torch.dtype, results: str) -> None:
    """Write down the bytes by which training makes a process larger."""
    torch.set_num_threads(1)
    small = dataclasses.replace(PRESETS["tiny"], d_model=16, num_heads=2, d_ff=16, vocab_size=50, dropout=0.0)
    for architecture in (small, dataclasses.replace(PRESETS[preset], vocab_size=8192)):
        is_small = architecture is small
        before = peak_memory()
        state = Replicated(Transformer(architecture), CONFIG, dtype)
        state.model.train()
        batch = batch_of(Shape(2, 4, 4) if is_small else shape, architecture.vocab_size)
        checkpoints = Checkpoints(f"{results}-{is_small}", 1)
        for step in range(2):
            train_step(state, [batch], [step], 1e-3, CONFIG)
            checkpoints.save(Progress(step=step), state.tensors())
        checkpoints.wait()
    Path(results).write_text(str(peak_memory() - before))


@pytest.mark.parametrize(
    ("preset", "dtype", "shape"),
    [
        ("small", torch.float32, Shape(100, 24, 28)),
        ("tiny", torch.bfloat16, Shape(100, 24, 28)),
        ("base", torch.float32, Shape(8, 8, 8)),  # nearly all of it is weights, and copies of them
    ],
)
def test_the_estimate_is_near_to_what_a_run_takes(tmp_path: Path, preset: str, dtype: torch.dtype, shape: Shape):
    results = str(tmp_path / "bytes")
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(preset, shape, dtype, results))
    process.start()
    process.join()
    measured = int(Path(results).read_text())
    architecture = dataclasses.replace(PRESETS[preset], vocab_size=8192)
    estimate = sum(estimate_memory(architecture, shape, setting(element_bytes=dtype.itemsize)).values())
    print(f"{preset} {dtype}: measured {measured / 2**20:.0f} MiB, estimated {estimate / 2**20:.0f} MiB")
    assert estimate / FACTOR < measured < estimate * FACTOR


def test_what_shares_memory_out_or_spares_it_is_seen():
    big, shape = dataclasses.replace(PRESETS["big"], vocab_size=32_000), Shape(64, 64, 64)

    def total(**changed: Any) -> int:
        names = {name: changed.pop(name) for name in ("workers", "lanes", "on_gpu") if name in changed}
        return sum(estimate_memory(big, shape, setting(TrainingConfig(**changed), element_bytes=2, **names)).values())

    assert total(parallel="fsdp", workers=8) < total(workers=8) / 1.5
    assert total(parallel="fsdp", workers=1) == total(workers=1), "one worker alone holds the whole model"
    assert total(parallel="fsdp", workers=8) < total(parallel="fsdp", workers=2)
    assert total(parallel="fsdp", workers=8) < total(parallel="fsdp", workers=8, lanes=2)
    assert total(parallel="fsdp", workers=10**6) > 4 * sum(count_parameters(big).values()), "validation takes all of it"
    assert total(activation_checkpointing=True) < total()
    assert total(r_drop=1.0) > total() and total(ema_decay=0.9) > total()
    assert total(on_gpu=True) < total() - 12 * sum(count_parameters(big).values()) + (256 - 32 << 22), "no checkpoint"
    assert total(workers=1) - total(workers=4) == 9 * sum(count_parameters(big).values()), "each writes a share"
    assert total(on_gpu=True) < total() + (256 - 32 << 22)
