"""The run job hands each stage what is meant for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfray import run as run_file
from tfray.cluster import connected, connected_once
from tfray.config import ClusterConfig, CorpusConfig, RunJob, TrainJob
from tfray.errors import InputError


def test_settings_that_may_change_reach_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: dict[str, Any] = {}
    results = {"tokenize": SimpleNamespace(folder="tokens"), "train": "best", "predict": "predictions", "evaluate": {}}
    for name, result in results.items():
        monkeypatch.setattr(run_file, name, lambda job, n=name, r=result: jobs.update({n: job}) or r)
    corpus = CorpusConfig(train=["a"], test_share=0.1)
    run_file.run(RunJob(out=str(tmp_path), corpus=corpus, allow_change=["training.epochs"]))
    assert isinstance(jobs["train"], TrainJob) and jobs["train"].allow_change == ["training.epochs"]
    assert jobs["predict"].mode == "overwrite", "the model is another one"
    run_file.run(RunJob(out=str(tmp_path), corpus=corpus))
    assert jobs["predict"].mode == "resume"


def test_a_ray_that_was_there_before_the_run_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    ray = SimpleNamespace(is_initialized=lambda: True, shutdown=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with connected_once(), connected(ClusterConfig()):
        pass
    assert not ended


def test_a_missing_file_of_references_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "test.de").write_text("eins\n")
    job = RunJob(out=str(tmp_path / "out"), test=[str(tmp_path / "test.de")], test_target=str(tmp_path / "typo.en"))
    with pytest.raises(InputError, match=r"test_target.*typo\.en"):
        run_file.run(job)
    with pytest.raises(InputError, match=r"test_target=.* names no file"):
        RunJob(out="out", corpus=CorpusConfig(test_share=0.1), test_target="test.en")
