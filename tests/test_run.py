"""The run job hands each stage what is meant for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfray import run as run_file
from tfray.config import CorpusConfig, RunJob, TrainJob


def test_settings_that_may_change_reach_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: dict[str, Any] = {}
    results = {"tokenize": SimpleNamespace(folder="tokens"), "train": "best", "predict": "predictions", "evaluate": {}}
    for name, result in results.items():
        monkeypatch.setattr(run_file, name, lambda job, n=name, r=result: jobs.update({n: job}) or r)
    corpus = CorpusConfig(train=["a"], test_share=0.1)
    run_file.run(RunJob(out=str(tmp_path), corpus=corpus, allow_change=["training.epochs"]))
    assert isinstance(jobs["train"], TrainJob) and jobs["train"].allow_change == ["training.epochs"]
