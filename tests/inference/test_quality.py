"""int8 only where its loss was measured and is small; the figures can be seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tfray
from tests.inference.conftest import WORDS, Run, make_job
from tfray.checkpoint.folder import open_model_folder
from tfray.config import GenerationConfig, PredictJob
from tfray.errors import InputError
from tfray.generation.generate import prepare
from tfray.inference import predict as job_module
from tfray.inference import quality
from tfray.inference.quality import Comparison, compare, require_quality
from tfray.inference.summary import format_result
from tfray.storage import read_json

SOURCES = [" ".join(WORDS.split()[row % 7 : row % 7 + 1 + row % 4]) for row in range(20)]
SEARCH = {"beam_size": 2, "max_length_extra": 5}
JobOf = Callable[..., PredictJob]


@pytest.fixture
def references(model_folder: str) -> list[str]:
    """What fp32 makes of the sources: the best references that fp32 can have."""
    return tfray.load(model_folder, threads=1, precision="fp32", **SEARCH).answers(SOURCES)


@pytest.fixture
def job_of(model_folder: str, tmp_path: Path, references: list[str]) -> JobOf:
    """Makes jobs in int8, over the sources with their references (pairs) or without (alone)."""
    pq.write_table(pa.table({"source": SOURCES, "target": references}), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"source": SOURCES}), tmp_path / "alone.parquet")

    def job(name: str = "pairs", out: str = "out", **settings: object) -> PredictJob:
        settings = {"precision": "int8", "most_loss": 100.0, **settings}
        return make_job(model_folder, tmp_path / f"{name}.parquet", tmp_path / out, **settings)

    return job


def test_the_loss_is_that_of_the_same_rows_in_both_precisions(model_folder: str, references: list[str]) -> None:
    pairs = [*zip(SOURCES, references, strict=True), ("", "empty"), ("one " * 300, "long")]
    found = compare([open_model_folder(model_folder)], GenerationConfig(**SEARCH), pairs)
    assert (found.metric, found.rows, found.reference) == ("BLEU", len(SOURCES), pytest.approx(100))
    model = tfray.load(model_folder, threads=1, precision="int8", pairs=pairs, most_loss=100, **SEARCH)
    texts = model.answers(SOURCES)
    assert found.agreement == sum(map(str.__eq__, texts, references)) / len(SOURCES)
    assert found.found == pytest.approx(quality.quality("BLEU", texts, references))
    assert found.loss == found.reference - found.found


def test_capitals_cost_nothing_where_the_model_reads_and_writes_lower_case(model_folder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "lower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text": {"lowercase": True}}))
    texts = tfray.load(str(folder), threads=1, precision="fp32", **SEARCH).answers(SOURCES)
    pairs = [(source, text.upper()) for source, text in zip(SOURCES, texts, strict=True)]
    assert compare([open_model_folder(str(folder))], GenerationConfig(**SEARCH), pairs).reference == pytest.approx(100)
    assert compare([open_model_folder(model_folder)], GenerationConfig(**SEARCH), pairs).reference < 90


def test_labels_are_counted_right_or_wrong(label_model: str) -> None:
    labels = tfray.load(label_model, threads=1, precision="fp32").answers(SOURCES)
    wrong = [label if row % 4 else "?" for row, label in enumerate(labels)]
    pairs = list(zip(SOURCES, wrong, strict=True))
    found = compare([open_model_folder(label_model)], GenerationConfig(), pairs)
    assert found.metric == "accuracy" and found.reference == 75


def test_a_loss_beyond_the_limit_is_refused_with_its_figures() -> None:
    require_quality(Comparison("BLEU", 500, 30.0, 29.8, 0.9), most_loss=0.3)
    with pytest.raises(InputError, match=r"loses 0.50 BLEU.*most_loss=0.3.*29.50, fp32: 30.00, on 500 rows.*bf16"):
        require_quality(Comparison("BLEU", 500, 30.0, 29.5, 0.9), most_loss=0.3)


def test_a_job_in_int8_measures_itself_on_its_own_targets_once(
    run: Run, job_of: JobOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(job_of(), unit_rows=5, most_units=1)
    stored = read_json(str(tmp_path / "out" / "_quality.json"))
    assert stored["metric"] == "BLEU" and stored["rows"] == len(SOURCES) and stored["reference"] == pytest.approx(100)
    monkeypatch.setattr(quality, "compare", None)  # a later start knows
    assert len(run(job_of(), unit_rows=5)) == len(SOURCES)
    assert read_json(str(tmp_path / "out" / "_summary.json"))["quality"] == stored
    assert "int8: BLEU" in format_result(str(tmp_path / "out"))


def test_a_job_that_loses_too_much_begins_nothing(
    run: Run, job_of: JobOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "compare", lambda *rest: Comparison("BLEU", 20, 30.0, 20.0, 0.1))
    with pytest.raises(InputError, match=r"loses 10.00 BLEU"):
        run(job_of(most_loss=0.5))
    assert not list((tmp_path / "out").glob("[!.]*"))
    assert len(run(job_of(precision="fp32"))) == len(SOURCES), "another precision is free to go there"


def test_without_references_files_with_some_are_asked_for(run: Run, job_of: JobOf, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quality_data.*bf16"):
        run(job_of("alone"))
    files = str(tmp_path / "pairs.parquet")
    assert len(run(job_of("alone", quality_data=files))) == len(SOURCES)
    assert "int8: BLEU" in job_module.predict(job_of("alone", "dry", quality_data=files, dry_run=True))


def test_in_process_int8_needs_pairs_and_on_a_gpu_it_is_refused(model_folder: str) -> None:
    with pytest.raises(InputError, match="give pairs"):
        tfray.load(model_folder, threads=1, precision="int8")
    model = open_model_folder(model_folder).load_model().to("meta")
    with pytest.raises(InputError, match="int8' is for CPUs"):
        prepare(model, GenerationConfig(precision="int8"))


def test_references_of_which_none_is_a_label_measure_nothing(label_model: str) -> None:
    pairs = [(source, str(row % 2)) for row, source in enumerate(SOURCES)]
    with pytest.raises(InputError, match=r"none of the references \(0, 1\) is a label of the model.*quality_data"):
        compare([open_model_folder(label_model)], GenerationConfig(), pairs)
