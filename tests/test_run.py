"""The run job hands each stage what is meant for it."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfray import run as run_file
from tfray.cluster import connected, connected_once
from tfray.config import ClusterConfig, CorpusConfig, InferenceConfig, ModelConfig, RunJob, TrainingConfig, TrainJob
from tfray.errors import InputError


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The jobs of the stages that were begun; none of them does anything."""
    jobs: dict[str, Any] = {}
    tokens = SimpleNamespace(folder="tokens", has_split=lambda split: True)
    results = {"tokenize": tokens, "train": "best", "predict": "predictions", "evaluate": {}}
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


ROWS = {"source": ["eins", "zwei"], "target": ["one", "two"]}
TWO_LINES = "eins\nzwei\n"


def write(path: Path, content: str | bytes | dict[str, list]) -> None:
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("files", "corpus", "said"),
    [
        ({"test.de": TWO_LINES}, {}, r"test\.de' is plain text .*give test_target, or"),
        ({"test.de": TWO_LINES, "ref": "one\n"}, {}, r"test_target=.*ref' has 1 lines for 2 lines of test="),
        ({"test.de.gz": gzip.compress(b"a\nb\nc"), "ref": TWO_LINES}, {}, r"test_target=.* has 2 lines for 3 lines"),
        ({"test.de": TWO_LINES, "ref": gzip.compress(b"one\ntwo\n")}, {}, r"test_target=.* is not UTF-8 text"),
        ({"test.csv": "source\neins\n", "ref": "\udcff".encode("utf-8", "surrogatepass")}, {}, r"test_target=.* UTF-8"),
        ({"test.parquet": ROWS, "ref": "one\n"}, {}, r"test_target=.*ref' has 1 lines for 2 rows of test="),
        ({"test.parquet": {"source": ["eins"]}}, {}, r"no column target or label .*corpus\.target_column"),
        ({"test.parquet": {"target": ["one"]}}, {}, r"no column source or text .*corpus\.source_column"),
        ({"test.parquet": {"n": ["one"]}, "ref": "one\n"}, {}, r"no column source or text .*corpus\.source_column"),
        ({"test.parquet": ROWS}, {"target_column": "en"}, r"corpus\.target_column='en' is not in .*; its columns are"),
        ({"test.parquet": ROWS, "test2.parquet": {"source": ["drei"]}}, {}, r"test2.* there is no column 'target'"),
        ({"test.parquet": ROWS, "test.md": "a note"}, {}, r"test .*test\.md' counts as plain text.*--test"),
        ({"test.parquet": ROWS | {"score": [1, 2]}}, {}, r"columns named score.*inference\.prefix"),
        ({"test.parquet": ROWS | {"n_segments": [1, 2]}}, {}, r"columns named n_segments"),
        ({"test.parquet": {"source": ["eins"], "truncated": [True]}, "ref": "one\n"}, {}, r"columns named truncated"),
        ({"test.parquet": b"no Parquet"}, {}, r"test\.parquet' cannot be "),
        ({"test.csv": ""}, {}, r"test=.* holds no row"),
    ],
)
def test_test_files_that_cannot_be_predicted_and_compared_are_refused_before_the_training(
    tmp_path: Path, jobs: dict[str, Any], files: dict[str, Any], corpus: dict[str, str], said: str
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    target = str(tmp_path / "ref") if "ref" in files else None
    job = RunJob(out=str(tmp_path / "out"), test=f"{tmp_path}/test*", test_target=target, corpus=CorpusConfig(**corpus))
    with pytest.raises(InputError, match=said):
        run_file.run(job)
    assert not jobs


@pytest.mark.parametrize(
    ("files", "corpus"),
    [
        ({"test.de": "eins\nzwei", "test2.de": "drei\n", "ref": "one\ntwo\r\nthree"}, {}),
        ({"test.de.gz": gzip.compress(b"eins\nzwei\n"), "ref": TWO_LINES}, {}),
        ({"test.parquet": {"text": ["gut"], "label": [1], "n_segments": [1]}}, {}),
        ({"test.csv": "source,target\neins,one\n", "test2.csv": ""}, {}),
        ({"test.jsonl": '{"source": "eins"}', "ref": "one\n"}, {"target_column": "english"}),
    ],
)
def test_test_files_with_all_that_they_need_go_their_way(
    tmp_path: Path, jobs: dict[str, Any], files: dict[str, Any], corpus: dict[str, str]
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    target = str(tmp_path / "ref") if "ref" in files else None
    test = f"{tmp_path}/test*"
    run_file.run(RunJob(out=str(tmp_path / "out"), test=test, test_target=target, corpus=CorpusConfig(**corpus)))
    assert [*jobs] == ["tokenize", "train", "predict", "evaluate"]


def test_columns_of_the_held_out_rows_that_predict_would_add_are_refused_before_the_training(
    tmp_path: Path, jobs: dict[str, Any]
) -> None:
    corpus = CorpusConfig(train=["a"], test_share=0.1)
    job = RunJob(out=str(tmp_path), corpus=corpus, inference=InferenceConfig(provenance=True))
    with pytest.raises(InputError, match=r"columns named file, row, .*inference\.prefix"):
        run_file.run(job)
    assert not jobs
    run_file.run(replace(job, inference=InferenceConfig(provenance=True, prefix="predicted_")))
    assert [*jobs] == ["tokenize", "train", "predict", "evaluate"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(model=ModelConfig(num_heads=3)), r"model\.num_heads=3 must divide"),
        (dict(inference=InferenceConfig(token_scores=True)), r"inference\.token_scores=True is for task score"),
        (dict(inference=InferenceConfig(quality_data="nosuch.parquet")), r"inference\.quality_data=.*nosuch"),
        (dict(training=TrainingConfig(best_metric="bleu")), r"training\.best_metric='bleu' goes by validations"),
        (dict(training=TrainingConfig(patience=3)), r"training\.patience=3 goes by validations; name corpus\.valid"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_at_once(
    tmp_path: Path, jobs: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    corpus = CorpusConfig(train=["a"], test_share=0.1)
    with pytest.raises(InputError, match=said):
        run_file.run(RunJob(out=str(tmp_path), corpus=corpus, **settings))
    assert not jobs
    if "training" in settings:
        run_file.run(RunJob(out=str(tmp_path), corpus=replace(corpus, valid_share=0.1), **settings))


def test_a_missing_file_of_references_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "test.de").write_text("eins\n")
    job = RunJob(out=str(tmp_path / "out"), test=[str(tmp_path / "test.de")], test_target=str(tmp_path / "typo.en"))
    with pytest.raises(InputError, match=r"test_target.*typo\.en"):
        run_file.run(job)
    with pytest.raises(InputError, match=r"test_target=.* names no file"):
        RunJob(out="out", corpus=CorpusConfig(test_share=0.1), test_target="test.en")


def test_a_share_that_holds_out_no_row_is_said_before_the_training(
    tmp_path: Path, jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = SimpleNamespace(folder="tokens", has_split=lambda split: split != "test")
    monkeypatch.setattr(run_file, "tokenize", lambda job: tokens)
    with pytest.raises(InputError, match=r"corpus\.test_share=0\.1 holds out no row"):
        run_file.run(RunJob(out=str(tmp_path), corpus=CorpusConfig(train=["a"], test_share=0.1)))
    assert not jobs
