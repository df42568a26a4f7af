"""Training is the same on any number of workers, whether each holds the whole model or slices of it."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.training.parallel_runs import EVERYTHING, PLAIN, RATE, SETTINGS, Run, new_state, run_all
from tests.training.processes import run_workers
from tfray.errors import InputError
from tfray.training.replicated import Replicated
from tfray.training.sharded import check_backend

EXACT = ("plain", "everything", "sharded plain", "sharded everything")
RUNS = {2: tuple(SETTINGS), 4: EXACT}
CASES = [(count, name) for count, names in RUNS.items() for name in names if name in EXACT]


@functools.cache
def runs(count: int) -> list[dict[str, Run]]:
    """Return every worker's runs of the settings, by name."""
    return run_workers(count, run_all, RUNS[count])


@functools.cache
def alone(name: str) -> Run:
    """Return the run of one worker that nothing connects."""
    return run_all((name,))[name]


def expected_of(name: str) -> Run:
    """Return what a setting is to give on any number of workers: what it gives whole on one."""
    return alone(name.removeprefix("sharded "))


def without_key_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors but for what softmax does not see: its gradient is rounding, which Adam makes large."""
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if name.endswith("query_key_value.bias"):
            tensor.view(3, -1)[1] = 0
        if name.endswith("cross_attention.key_value.bias"):
            tensor.view(2, -1)[0] = 0
    return kept


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    found, expected = without_key_biases(found), without_key_biases(expected)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def gradient(run: Run) -> dict[str, Tensor]:
    """Return the first step's gradient, which the first moment shows."""
    return {name: t / (1 - PLAIN.adam_betas[0]) for name, t in run.first.items() if name.startswith("exp_avg.")}


@pytest.mark.parametrize(("count", "name"), [case for case in CASES if "plain" in case[1]])
def test_gradients_of_several_workers_are_those_of_one(count: int, name: str):
    expected = gradient(expected_of(name))
    assert max(tensor.abs().max() for tensor in expected.values()) > 0.1
    for worker in runs(count):
        assert_equal(gradient(worker[name]), expected)


@pytest.mark.parametrize(("count", "name"), CASES)
def test_several_steps_on_several_workers_are_those_on_one(count: int, name: str):
    expected = expected_of(name)
    for worker in runs(count):
        found = worker[name]
        assert_equal(found.weights, expected.weights)
        assert_equal(found.tensors, expected.tensors)
        for one, other in zip(found.steps, expected.steps, strict=True):
            assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=1e-6)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
            assert one[1:4] == other[1:4]
            assert one.is_skipped == other.is_skipped


@pytest.mark.parametrize(("count", "name"), CASES)
def test_every_worker_finds_the_very_same(count: int, name: str):
    first, *others = (worker[name] for worker in runs(count))
    for other in others:
        assert [step[:6] for step in other.steps] == [step[:6] for step in first.steps]
        assert all(torch.equal(tensor, first.tensors[key]) for key, tensor in other.tensors.items())
        assert all(torch.equal(tensor, first.weights[key]) for key, tensor in other.weights.items())


def test_the_runs_learn_and_skip_and_clip_and_drop_out():
    plain, everything = alone("plain"), alone("everything")
    assert [step.is_skipped for step in everything.steps] == [False, True, False]
    assert all(step.gradient_norm > EVERYTHING.gradient_clip for step in everything.steps)
    losses = [run.steps[0].negative_log_likelihood for run in (plain, everything)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    untrained = new_state(SETTINGS["plain"], "ddp").weights()
    assert all((plain.weights[name] - tensor).abs().max() > RATE for name, tensor in untrained.items())


@pytest.mark.parametrize(("count", "name"), [case for case in CASES if "everything" in case[1]])
def test_the_moving_average_is_validated_and_given_out_and_the_weights_come_back(count: int, name: str):
    expected = expected_of(name)
    for worker in runs(count):
        found = worker[name]
        assert found.valid == pytest.approx(expected.valid, rel=1e-6)
        before, during, after = found.valid
        assert before == after != pytest.approx(during, rel=1e-5)
        for key, tensor in found.weights.items():
            assert torch.equal(tensor, found.tensors[f"average.{key}"])
            assert not torch.equal(tensor, found.tensors[f"weight.{key}"])


@pytest.mark.parametrize("name", ["to sharded", "from sharded"])
def test_a_checkpoint_of_one_kind_goes_on_as_the_other(name: str):
    for worker in runs(2):
        assert_equal(worker[name].tensors, alone("everything").tensors)


@pytest.mark.parametrize("count", [2, 4])
def test_slices_share_out_the_memory_and_whole_copies_do_not(count: int):
    whole = alone("everything").kept_elements
    kept = [worker["sharded everything"].kept_elements for worker in runs(count)]
    assert sum(kept) == whole
    assert max(kept) < 1.1 * whole / count
    assert all(worker["everything"].kept_elements == whole for worker in runs(count))


@pytest.mark.parametrize("name", ["bf16", "sharded bf16"])
def test_bf16_computes_in_bf16_and_keeps_weights_and_sums_in_fp32(name: str):
    expected, exact = alone("bf16"), alone("plain")
    for worker in runs(2):
        found = worker[name]
        assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
        assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
        for index, step in enumerate(found.steps):
            assert step.negative_log_likelihood == pytest.approx(
                expected.steps[index].negative_log_likelihood, rel=1e-3
            )
            assert step.negative_log_likelihood == pytest.approx(exact.steps[index].negative_log_likelihood, rel=1e-2)
            assert step.negative_log_likelihood != exact.steps[index].negative_log_likelihood
            assert step.gradient_norm == pytest.approx(expected.steps[index].gradient_norm, rel=1e-2)


def test_fsdp_on_one_worker_has_nothing_to_share_out():
    assert isinstance(new_state(SETTINGS["sharded plain"], "fsdp"), Replicated)


def test_fsdp_that_the_connection_cannot_serve_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:gloo")
    check_backend(torch.device("cpu"))
    for device in ("cuda", "mps"):
        with pytest.raises(InputError, match=rf"fsdp needs .*nccl on cuda, and on {device} .*training.parallel=ddp"):
            check_backend(torch.device(device))


ON_GPUS = tuple(name for name in SETTINGS if not SETTINGS[name].dropout)  # a GPU draws other dropout


@functools.cache
def runs_on_gpus() -> list[dict[str, Run]]:
    """Return every worker's runs on as many GPUs as there are, and as divide the lanes."""
    count = max(n for n in (1, 2, 4) if n <= torch.cuda.device_count())
    return run_workers(count, run_all, ON_GPUS, "cuda", backend="nccl")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ON_GPUS)
def test_gpus_train_as_a_cpu_does(name: str):
    expected, tolerance = expected_of(name), 1e-2 if "bf16" in name else 1e-4
    for worker in runs_on_gpus():
        found = worker[name]
        torch.testing.assert_close(gradient(found), gradient(expected), atol=tolerance, rtol=tolerance)
        for one, other in zip(found.steps, expected.steps, strict=True):
            assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=tolerance)
