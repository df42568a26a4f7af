"""The best validation so far, and those since."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import TrainingConfig
from tfray.errors import InputError
from tfray.training.judge import Judge, check_metric

SCORES = st.floats(0, 100) | st.just(math.nan) | st.just(math.inf)


@given(st.sampled_from(["loss", "bleu", "accuracy"]), st.lists(SCORES, max_size=12))
def test_the_best_is_the_first_of_the_lowest_losses_or_highest_scores(metric: str, scores: list[float]):
    judge, verdicts = Judge(metric), []
    for step, score in enumerate(scores, 1):
        judge, is_best = judge.judge(step, {metric: score, "other": 1.0})
        verdicts.append(is_best)
    finite = [(score, step) for step, score in enumerate(scores, 1) if math.isfinite(score)]
    if not finite:
        assert judge == Judge(metric, stale_validations=len(scores))
        assert not any(verdicts)
        return
    best = min(score for score, _ in finite) if metric == "loss" else max(score for score, _ in finite)
    step = next(step for score, step in finite if score == best)
    assert judge == Judge(metric, best, step, len(scores) - step)
    assert verdicts[step - 1] and not any(verdicts[step:])


def test_a_finding_without_the_metric_changes_nothing():
    judge = Judge("bleu", 30.0, 500, 1)
    assert judge.judge(600, {"loss": 0.1, "perplexity": 1.1}) == (judge, False)


def test_without_validation_data_the_newest_is_the_best():
    assert Judge("loss", stale_validations=3).judge(600, {}) == (Judge("loss", None, 600, 0), True)


def test_a_best_loss_that_a_checkpoint_has_as_infinite_is_none_yet():
    assert Judge("loss", math.inf).judge(1, {"loss": 9.0})[1]
    assert Judge("bleu", math.inf).judge(1, {"bleu": 0.0})[1]


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
