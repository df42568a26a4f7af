"""How far a tokenize job is, from its commit log alone."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tokens.conftest import Run
from tests.tokens.test_tokenize import line, make_job, write_lines
from tfray.config import StatusJob
from tfray.errors import InputError
from tfray.units.ledger import MANIFEST, SUCCESS, open_ledger
from tfray.units.lock import Lock
from tfray.units.status import status


def test_status_of_a_tokenize_job(tmp_path: Path, run: Run) -> None:
    pairs = [(f"source {row}", f"target {row}") for row in range(60)]
    path = write_lines(tmp_path / "a.jsonl", [*map(line, pairs), b"{cut"])
    job = make_job(tmp_path / "out", path)
    run(job)
    finished = status(StatusJob(out=job.out))
    assert "finished" in finished and "rows: 61 of 61\n" in finished and "errors: 1 bad_json" in finished
    (tmp_path / "out" / SUCCESS).unlink()
    assert "stopped" in status(StatusJob(out=job.out))
    with Lock(job.out):
        assert "running" in status(StatusJob(out=job.out))
        with pytest.raises(InputError, match="is worked on by"):
            run(job)


def test_status_of_a_finished_job_counts_files_that_could_not_be_used_as_the_manifest_does(
    tmp_path: Path, run: Run
) -> None:
    for name, column in (("a", "source"), ("b", "other")):
        pq.write_table(pa.table({column: ["a man"] * 5, "target": ["ein Mann"] * 5}), tmp_path / f"{name}.parquet")
    job = make_job(tmp_path / "out", str(tmp_path / "*.parquet"))
    account = run(job).manifest["corpora"]["corpus"]
    told = json.loads(status(StatusJob(out=job.out, json=True)))
    assert (told["rows"], told["rows_in_all"], told["errors"]) == (10, 10, {"other_schema": 5})
    assert (account["rows"], account["rejected"]) == (10, {"other_schema": 5})


def test_a_training_has_its_progress_in_a_log(tmp_path: Path) -> None:
    open_ledger(str(tmp_path), {"tokens": "0", "training": {"epochs": 1}}, overwrite=False)
    with pytest.raises(InputError, match=r"is a training run.* look at its progress in .*/log\.jsonl"):
        status(StatusJob(out=str(tmp_path)))


def test_a_folder_that_no_job_began_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=MANIFEST):
        status(StatusJob(out=str(tmp_path)))
