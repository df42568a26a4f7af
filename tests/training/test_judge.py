"""The best validation so far, and those since."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.checkpoint.state import Progress
from tfray.config import TrainingConfig
from tfray.errors import InputError
from tfray.training.judge import check_metric, judged

SCORES = st.floats(0, 100) | st.just(math.nan) | st.just(math.inf)


def after(metric: str, best_score: float | None, best_step: int = 0, stale: int = 0) -> Progress:
    """Return progress that has come to a best validation and others since."""
    return Progress(best_metric=metric, best_score=best_score, best_step=best_step, stale_validations=stale)


@given(st.sampled_from(["loss", "bleu", "accuracy"]), st.lists(SCORES, max_size=12))
def test_the_best_is_the_first_of_the_lowest_losses_or_highest_scores(metric: str, scores: list[float]):
    progress, verdicts = Progress(best_metric=metric), []
    for step, score in enumerate(scores, 1):
        progress, is_best = judged(progress, step, {metric: score, "other": 1.0})
        verdicts.append(is_best)
    finite = [(score, step) for step, score in enumerate(scores, 1) if math.isfinite(score)]
    if not finite:
        assert progress == Progress(best_metric=metric, stale_validations=len(scores))
        assert not any(verdicts)
        return
    best = min(score for score, _ in finite) if metric == "loss" else max(score for score, _ in finite)
    step = next(step for score, step in finite if score == best)
    assert progress == after(metric, best, step, len(scores) - step)
    assert verdicts[step - 1] and not any(verdicts[step:])


def test_a_finding_without_the_metric_changes_nothing():
    progress = after("bleu", 30.0, 500, 1)
    assert judged(progress, 600, {"loss": 0.1, "perplexity": 1.1}) == (progress, False)


def test_without_validation_data_the_newest_is_the_best():
    assert judged(after("loss", None, 0, 3), 600, {}) == (after("loss", None, 600, 0), True)


def test_a_best_loss_that_a_checkpoint_has_as_infinite_is_none_yet():
    assert judged(after("loss", math.inf), 1, {"loss": 9.0})[1]
    assert judged(after("bleu", math.inf), 1, {"bleu": 0.0})[1]


@pytest.mark.parametrize(
    ("task", "metric", "message"),
    [
        ("classification", "bleu", "training.best_metric='bleu' is not measured in classification.* loss or accuracy"),
        ("translation", "accuracy", "is not measured in translation.* loss or bleu or chrf"),
    ],
)
def test_a_metric_of_another_task_is_refused(tmp_path: Path, write_tokens, task: str, metric: str, message: str):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])], split="valid", task=task)
    with pytest.raises(InputError, match=message):
        check_metric(TrainingConfig(best_metric=metric), tokens)  # type: ignore[arg-type]


def test_a_metric_needs_rows_and_validation_data(tmp_path: Path, write_tokens):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])], split="valid")
    config = TrainingConfig(best_metric="bleu")
    check_metric(config, tokens)
    with pytest.raises(InputError, match=r"training\.valid_rows=0 decodes nothing"):
        check_metric(replace(config, valid_rows=0), tokens)
    without = write_tokens(str(tmp_path / "train"), [("a", [([5], [6])])])
    with pytest.raises(InputError, match="needs validation data"):
        check_metric(config, without)
    check_metric(TrainingConfig(valid_rows=0), without)


@pytest.mark.parametrize("name", ["patience", "keep_best_checkpoints"])
def test_what_goes_by_validations_needs_data_for_them(tmp_path: Path, write_tokens, name: str):
    with_data, without = (
        write_tokens(str(tmp_path / split), [("a", [([5], [6])])], split=split) for split in ("valid", "train")
    )
    config = replace(TrainingConfig(), **{name: 3})
    check_metric(config, with_data)
    with pytest.raises(InputError, match=rf"training\.{name}=3 goes by validations, and .*train' has no data"):
        check_metric(config, without)
