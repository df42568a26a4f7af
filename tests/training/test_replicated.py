"""The replicated state: resumes bit for bit, averages, and sums over real processes."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tfray.batches.batch import Batch, collate
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.training import replicated
from tfray.training.flat import Layout
from tfray.training.replicated import Replicated, cut
from tfray.training.step import StepMetrics, train_step
from tfray.training.workers import sum_over_workers

CONFIG = TrainingConfig(ema_decay=0.9)
DTYPES = [torch.float32, torch.bfloat16]
LANES = 4


def new_state(
    seed: int,
    dtype: torch.dtype = torch.float32,
    config: TrainingConfig = CONFIG,
    dropout: float = 0.2,
    **options: Any,
) -> Replicated:
    torch.manual_seed(seed)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=15)
    state = Replicated(Transformer(Architecture(**sizes, dropout=dropout, **options)), config, dtype)  # type: ignore[arg-type]
    state.model.train()
    return state


def some_batch(step: int) -> Batch:
    values = np.random.default_rng(step).integers(3, 15, 12).astype(np.int32)
    rows = Ragged(values, np.array([0, 3, 7, 12]))
    return collate(rows, rows)


def train(state: Replicated, steps: range, rank: int = 0, workers: int = 1) -> list[StepMetrics]:
    lanes = range(rank, LANES, workers)
    return [
        train_step(state, [some_batch(s * LANES + n) for n in lanes], [s * LANES + n for n in lanes], 1e-2, CONFIG)
        for s in steps
    ]


def copies(state: Replicated) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_from_another_states_tensors_continues_bit_for_bit(dtype: torch.dtype):
    uninterrupted, interrupted, restored = new_state(1, dtype), new_state(1, dtype), new_state(2, dtype)
    train(uninterrupted, range(6))
    train(interrupted, range(3))
    for name, tensor in restored.tensors().items():
        tensor.copy_(interrupted.tensors()[name])
    restored.loaded(interrupted.updates)
    assert train(restored, range(3, 6)) == train(interrupted, range(3, 6))
    for name, tensor in uninterrupted.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor), name


def test_tensors_are_live_and_fp32_and_named_as_in_the_model():
    state = new_state(1, torch.bfloat16)
    names = state.model.transformer.state_dict().keys()
    kinds = ("weight", "exp_avg", "exp_avg_sq", "average")
    assert state.tensors().keys() == {f"{kind}.{name}" for kind in kinds for name in names}
    assert {tensor.dtype for tensor in state.tensors().values()} == {torch.float32}
    before = copies(state)
    train(state, range(1))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in state.tensors().items() if "norm" in name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_average_takes_the_place_of_the_weights_for_a_block_and_they_come_back(dtype: torch.dtype):
    state = new_state(1, dtype)
    train(state, range(3))
    before = copies(state)
    parameters = dict(state.model.transformer.named_parameters())
    with pytest.raises(KeyboardInterrupt), state.averaged():
        for name, parameter in parameters.items():
            assert torch.equal(parameter, before[f"average.{name}"].to(dtype))
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert all(torch.equal(p, before[f"weight.{name}"].to(dtype)) for name, p in parameters.items())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_weights_are_the_average_if_there_is_one_and_load_into_a_model(decay: float):
    state = new_state(1, torch.bfloat16, TrainingConfig(ema_decay=decay))
    train(state, range(2))
    weights = state.weights()
    kind = "average" if decay else "weight"
    assert all(torch.equal(tensor, state.tensors()[f"{kind}.{name}"]) for name, tensor in weights.items())
    new_state(2).model.transformer.load_state_dict(weights)
    train(state, range(2, 3))
    assert not torch.equal(weights["encoder_norm.weight"], state.weights()["encoder_norm.weight"]), "they are copies"


@pytest.mark.parametrize("elements", [1, 400, 10**9])
def test_buckets_hold_every_parameter_once_and_lie_one_beside_the_other(elements: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replicated, "BUCKET_ELEMENTS", elements)
    layout = Layout.of(new_state(1).model.transformer)
    bounds, members = cut(layout)
    assert sorted(name for names in members for name in names) == sorted(layout.shapes)
    assert len(bounds) == {1: len(layout.shapes), 10**9: 2}.get(elements, len(bounds))
    assert sorted(bounds)[0][0] == 0 and sorted(bounds)[-1][1] == layout.size
    assert all(stop == start for (_, stop), (start, _) in zip(sorted(bounds), sorted(bounds)[1:], strict=False))
    for (start, stop), names in zip(bounds, members, strict=True):
        assert all(start <= layout.offsets[name] < stop for name in names)


def work(rank: int, workers: int, store: str, out: str, dtype: torch.dtype, elements: int) -> None:
    """Train three steps as one of several workers, and keep what came out."""
    torch.set_num_threads(1)
    replicated.BUCKET_ELEMENTS = elements
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    state = new_state(1, dtype)
    counted = sum_over_workers(torch.tensor(rank + 1.0)).item()
    reduced: list[Tensor] = []
    step = state.optimizer.step

    def keep(gradient: Tensor, *arguments: Any) -> None:
        reduced.append(gradient.clone())
        step(gradient, *arguments)

    state.optimizer.step = keep  # type: ignore[method-assign]
    metrics = train(state, range(3), rank, workers)
    torch.save({"tensors": state.tensors(), "gradient": reduced, "metrics": metrics, "counted": counted}, out)
    dist.destroy_process_group()


def run_workers(folder: Path, workers: int, dtype: torch.dtype, elements: int = 400) -> list[dict[str, Any]]:
    """Return what each of several real processes found."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    outs = [str(folder / f"{rank}.pt") for rank in range(workers)]
    processes = [
        context.Process(target=work, args=(rank, workers, str(folder / "store"), out, dtype, elements))
        for rank, out in enumerate(outs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(out, weights_only=False) for out in outs]


@pytest.mark.parametrize("elements", [400, 10**9])
def test_gradients_of_two_workers_are_those_of_one(tmp_path: Path, elements: int):
    (alone,) = run_workers(tmp_path / "1", 1, torch.float32)
    several = run_workers(tmp_path / "2", 2, torch.float32, elements)
    assert [found["counted"] for found in several] == [3.0, 3.0]
    for found in several:
        torch.testing.assert_close(found["gradient"][0], alone["gradient"][0], atol=1e-6, rtol=1e-6)
        for ours, theirs in zip(found["metrics"], alone["metrics"], strict=True):
            assert ours[:6] == pytest.approx(theirs[:6], rel=1e-4)
    for name, tensor in several[0]["tensors"].items():
        assert torch.equal(tensor, several[1]["tensors"][name]), f"{name} differs between workers"


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_workers_give_bit_equal_results_again(tmp_path: Path, dtype: torch.dtype):
    first, second = (run_workers(tmp_path / name, 2, dtype)[0] for name in "ab")
    assert [metrics[:6] for metrics in first["metrics"]] == [metrics[:6] for metrics in second["metrics"]]
    assert all(torch.equal(tensor, second["tensors"][name]) for name, tensor in first["tensors"].items())


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "norm_position": "post", "positions": "rotary"}])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile itself
def test_layers_can_be_compiled_as_one_graph_each_and_learn_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    compiled = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    found = []
    for choice in ("no", "yes"):
        config = TrainingConfig(ema_decay=0.9, compile=choice)  # type: ignore[arg-type]
        state = new_state(1, config=config, dropout=0.0, **options)
        found.append([metrics.negative_log_likelihood for metrics in train(state, range(3))])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_gradient_norm_of_many_weights_is_right_to_four_digits():
    state = new_state(1)
    gradient = torch.randn(40_000_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    state.gradient = gradient
    assert state.reduce() == pytest.approx(float(torch.linalg.vector_norm(gradient.double())), rel=1e-4)


def growths() -> list[int]:
    """Return by how many bytes each of five stretches of 200 steps of a lane makes the process grow."""
    torch.set_num_threads(1)  # two would wait for each other at each of many small works, for ever on a busy machine
    state = new_state(1, torch.bfloat16)
    process = psutil.Process()
    sizes = []
    for stretch in range(6):
        train(state, range(stretch * 200, stretch * 200 + 200), workers=LANES)
        sizes.append(process.memory_info().rss)
    return [after - before for before, after in itertools.pairwise(sizes)]


def test_memory_does_not_grow_over_many_steps():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh_process:
        found = fresh_process.submit(growths).result()
    assert min(found) < 200_000, f"every stretch makes it grow, by {found} bytes"
