"""The mean of checkpoints' weights, and of which checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.samples import KINDS, assert_equal, folders, part, save_steps, some_state
from tfray.checkpoint.average import average_checkpoints, chosen_checkpoints, mean_weights
from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Progress
from tfray.errors import InputError

SCORES = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.7, 5: 0.2}


def steps(folders: list[str]) -> list[int]:
    return sorted(int(folder[-8:]) for folder in folders)


@given(st.integers(1, 9))
def test_the_mean_is_that_of_all_tensors_and_of_equal_ones_the_same_to_the_bit(count: int):
    states = {str(seed): some_state(seed, ("weight",)) for seed in range(count)}
    found = mean_weights(list(states), lambda name: {key: tensor.clone() for key, tensor in states[name].items()})
    for name, tensor in found.items():
        expected = torch.stack([state[name] for state in states.values()]).double().mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    assert_equal(mean_weights(["0"] * count, lambda _: some_state(0)), some_state(0))


@pytest.mark.parametrize(("count", "expected"), [(1, [5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_are_chosen(tmp_path: Path, count: int, expected: list[int]):
    save_steps(tmp_path, *SCORES, scores=SCORES)
    assert steps(chosen_checkpoints(str(tmp_path), count, of_best=False)) == expected


def test_what_an_interrupt_saved_changes_no_mean(tmp_path: Path):
    for place, saved in (("calm", [10, 20, 30, 37]), ("interrupted", [10, 14, 20, 29, 30, 36, 37])):
        save_steps(tmp_path / place, *saved, keep=3, every=10)
        assert steps(chosen_checkpoints(str(tmp_path / place), 3, of_best=False, every=10)) == [20, 30, 37]
    save_steps(tmp_path / "early", 3, 10, keep=2, every=10)
    assert folders(tmp_path / "early") == ["step-00000003", "step-00000010"], "one to go back to"


@pytest.mark.parametrize(("count", "expected"), [(1, [2]), (3, [2, 3, 4]), (9, [1, 2, 3, 4, 5])])
def test_or_the_best_are(tmp_path: Path, count: int, expected: list[int]):
    save_steps(tmp_path, *SCORES, scores=SCORES)
    assert steps(chosen_checkpoints(str(tmp_path), count, of_best=True)) == expected


def test_without_scores_the_newest_are_the_best(tmp_path: Path):
    save_steps(tmp_path, 1, 2, 3)
    assert steps(chosen_checkpoints(str(tmp_path), 2, of_best=True)) == [2, 3]


@pytest.mark.parametrize(("kinds", "kind"), [(KINDS, "average"), (KINDS[:3], "weight")])
def test_moving_averages_are_averaged_where_there_are_any_and_weights_otherwise(
    tmp_path: Path, kinds: tuple[str, ...], kind: str
):
    checkpoints = Checkpoints(str(tmp_path), 9)
    for step in (1, 2):
        checkpoints.save(Progress(step=step), some_state(step, kinds), None)
    checkpoints.wait()
    found = average_checkpoints(str(tmp_path), 2, of_best=False)
    first, second = (some_state(step, kinds) for step in (1, 2))
    expected = {name.partition(".")[2]: (first[name] + second[name]) / 2 for name in first if name.startswith(kind)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_scores_by_another_metric_do_not_count(tmp_path: Path):
    checkpoints = Checkpoints(str(tmp_path), 1, 2)
    for step, (metric, score) in enumerate([("bleu", 30.0), ("bleu", 20.0), ("loss", -3.0), ("loss", -2.0)], 1):
        checkpoints.save(Progress(step=step, best_metric=metric), some_state(step), score)
    checkpoints.wait()
    assert steps(chosen_checkpoints(str(tmp_path), 2, of_best=True)) == [3, 4]


def test_a_damaged_checkpoint_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_steps(tmp_path, 1, 2, 3)
    damage(tmp_path, 1)
    found = average_checkpoints(str(tmp_path), 3, of_best=False)
    expected = (some_state(2)["average.inner"] + some_state(3)["average.inner"]) / 2
    torch.testing.assert_close(found["inner"], expected)
    assert "made without one: " in caplog.text and "step-00000001' is damaged" in caplog.text
    for step in (2, 3):
        damage(tmp_path, step)
    with pytest.raises(InputError, match="there is no whole checkpoint"):
        average_checkpoints(str(tmp_path), 3, of_best=False)


def damage(out: Path, step: int) -> None:
    """Change the last byte of a checkpoint's tensors."""
    path = part(out, step)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("of_best", [False, True])
def test_where_there_are_fewer_checkpoints_than_asked_for_people_are_told_of_how_many_the_mean_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, of_best: bool
):
    save_steps(tmp_path, 1, 2, scores=SCORES)
    for count in (2, 5):
        average_checkpoints(str(tmp_path), count, of_best)
    (told,) = (message for message in caplog.messages if message.startswith("the mean is of"))
    assert "2 checkpoints in place of training.average_checkpoints=5" in told


def test_no_checkpoint_and_one_of_another_model_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="there is no checkpoint of which to take the mean; lower"):
        average_checkpoints(str(tmp_path), 2, of_best=False)
    others = {"a": some_state(0), "b": some_state(0, ("weight",))}
    with pytest.raises(InputError, match="'a' and 'b' are of different models"):
        mean_weights(["a", "b"], others.__getitem__)
