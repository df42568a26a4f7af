"""The run job hands each stage what is meant for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfray import run as run_file
from tfray.cluster import connected, connected_once
from tfray.config import ClusterConfig, CorpusConfig, RunJob, TrainJob
from tfray.errors import InputError


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The jobs of the stages that were begun; none of them does anything."""
    jobs: dict[str, Any] = {}
    results = {"tokenize": SimpleNamespace(folder="tokens"), "train": "best", "predict": "predictions", "evaluate": {}}
    for name, result in results.items():
        monkeypatch.setattr(run_file, name, lambda job, n=name, r=result: jobs.update({n: job}) or r)
    return jobs


def test_settings_that_may_change_reach_the_training(tmp_path: Path, jobs: dict[str, Any]) -> None:
    corpus = CorpusConfig(train=["a"], test_share=0.1)
    run_file.run(RunJob(out=str(tmp_path), corpus=corpus, allow_change=["training.epochs"]))
    assert isinstance(jobs["train"], TrainJob) and jobs["train"].allow_change == ["training.epochs"]
    assert jobs["predict"].mode == "overwrite", "the model is another one"
    run_file.run(RunJob(out=str(tmp_path), corpus=corpus))
    assert jobs["predict"].mode == "resume"


def test_plain_text_is_predicted_and_compared_though_the_corpus_has_columns_of_other_names(
    tmp_path: Path, jobs: dict[str, Any]
) -> None:
    for name in ("test.de", "test.en"):
        (tmp_path / name).write_text("eins\n")
    corpus = CorpusConfig(source_column="german", target_column="english")
    texts = {"test": str(tmp_path / "test.de"), "test_target": str(tmp_path / "test.en")}
    run_file.run(RunJob(out=str(tmp_path / "out"), corpus=corpus, **texts))
    assert jobs["predict"].source_column is None
    assert (jobs["evaluate"].reference_column, jobs["evaluate"].reference_file) == (None, texts["test_target"])
    pq.write_table(pa.table({"german": ["eins"], "english": ["one"]}), tmp_path / "test.parquet")
    run_file.run(RunJob(out=str(tmp_path / "out"), corpus=corpus, test=str(tmp_path / "test.parquet")))
    assert (jobs["predict"].source_column, jobs["evaluate"].reference_column) == ("german", "english")


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
