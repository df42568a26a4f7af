"""Training is the same on any number of workers, whether each holds the whole model or slices of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.training.parallel_runs import EVERYTHING, RATE, Run, Setting, new_state, run, run_all
from tests.training.processes import run_workers
from tfray.config import TrainingConfig
from tfray.errors import InputError

COUNTS = (1, 2, 4)
KINDS = ("", "sharded ")
Results = dict[int, list[dict[str, Run]]]


@pytest.fixture(scope="module")
def results() -> Results:
    """Every setting's run on every worker, by the number of workers."""
    return {count: run_workers(count, run_all) for count in COUNTS}


@pytest.fixture(scope="module")
def alone() -> Callable[[str], Run]:
    """Runs of one worker without torch.distributed."""
    from tests.training.parallel_runs import SETTINGS

    runs: dict[str, Run] = {}
    return lambda name: runs.setdefault(name, run(SETTINGS[name]))


def without_key_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors but for what softmax does not see: its gradient is rounding, which Adam makes large."""
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if name.endswith("query_key_value.bias"):
            tensor.view(3, -1)[1] = 0
        if name.endswith("key_value.bias"):
            tensor.view(2 if "cross" in name else 3, -1)[0 if "cross" in name else 1] = 0
    return kept


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    found, expected = without_key_biases(found), without_key_biases(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=tolerance, rtol=1e-5, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", COUNTS)
def test_gradients_of_several_workers_are_those_of_one(results: Results, alone, count: int, kind: str):
    def gradient(run: Run) -> dict[str, Tensor]:
        scale = 1 - EVERYTHING.adam_betas[0]
        return {name: t / scale for name, t in run.tensors.items() if name.startswith("exp_avg.")}

    expected = gradient(alone("first"))
    assert max(tensor.abs().max() for tensor in expected.values()) > 0.1
    for worker in results[count]:
        assert_equal(gradient(worker[f"{kind}first"]), expected)


@pytest.mark.parametrize("setting", ["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", COUNTS)
def test_several_steps_on_several_workers_are_those_on_one(
    results: Results, alone, count: int, kind: str, setting: str
):
    expected = alone(setting)
    for worker in results[count]:
        found = worker[f"{kind}{setting}"]
        assert_equal(found.weights, expected.weights)
        assert_equal(found.tensors, expected.tensors)
        for one, other in zip(found.steps, expected.steps, strict=True):
            assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=1e-6)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
            assert one[1:4] == other[1:4] and one.is_skipped == other.is_skipped


def test_the_runs_clip_and_skip_and_drop_out(alone):
    plain, everything = alone("plain"), alone("everything")
    assert [step.is_skipped for step in everything.steps] == [False, False, True, False]
    assert all(step.gradient_norm > EVERYTHING.gradient_clip for step in everything.steps)
    assert plain.steps[0].negative_log_likelihood != pytest.approx(
        everything.steps[0].negative_log_likelihood, rel=1e-3
    )
    moved = (
        plain.weights["embedding.tokens.weight"]
        - new_state(Setting(("ddp",)), "ddp").weights()["embedding.tokens.weight"]
    )
    assert moved.abs().max() > RATE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", COUNTS)
def test_the_moving_average_is_validated_and_given_out_and_the_weights_come_back(
    results: Results, alone, count: int, kind: str
):
    expected = alone("everything")
    for worker in results[count]:
        found = worker[f"{kind}everything"]
        assert found.valid == pytest.approx(expected.valid, rel=1e-6)
        assert found.valid[0] == found.valid[2] != pytest.approx(found.valid[1], rel=1e-5)
        for name, tensor in found.weights.items():
            assert torch.equal(tensor, found.tensors[f"average.{name}"])
            assert not torch.equal(tensor, found.tensors[f"weight.{name}"])


@pytest.mark.parametrize("setting", ["to sharded", "from sharded"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_checkpoint_of_one_kind_goes_on_as_the_other(results: Results, alone, count: int, setting: str):
    for worker in results[count]:
        assert_equal(worker[setting].tensors, alone("everything").tensors)


@pytest.mark.parametrize("count", [2, 4])
def test_slices_share_out_the_memory_and_whole_copies_do_not(results: Results, alone, count: int):
    whole = alone("everything").kept_elements
    kept = [worker["sharded everything"].kept_elements for worker in results[count]]
    assert sum(kept) == whole
    assert max(kept) < 1.1 * whole / count
    assert all(worker["everything"].kept_elements == whole for worker in results[count])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", COUNTS)
def test_bf16_computes_in_bf16_and_keeps_weights_and_sums_in_fp32(results: Results, alone, count: int, kind: str):
    expected, of_one = alone("plain"), alone("bf16")
    for worker in results[count]:
        found = worker[f"{kind}bf16"]
        assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
        for one, other, exact in zip(found.steps, of_one.steps, expected.steps, strict=True):
            assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=1e-3)
            assert one.negative_log_likelihood == pytest.approx(exact.negative_log_likelihood, rel=1e-2)
            assert one.negative_log_likelihood != exact.negative_log_likelihood
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-2)


def test_fsdp_without_connected_workers_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"training.parallel=fsdp .*use training.parallel=ddp"):
        new_state(Setting(("fsdp",), TrainingConfig()), "fsdp")
