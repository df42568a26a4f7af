"""New, resume, overwrite, append: what is there is never lost, and never mixed with something else."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import S3
from tests.inference.conftest import Run, make_job, read_output
from tfray import storage
from tfray.config import StatusJob
from tfray.errors import CheckpointMismatch, InputError
from tfray.inference import predict as job_module
from tfray.units import place
from tfray.units.status import status


def write(path: Path, *texts: str) -> Path:
    pq.write_table(pa.table({"source": list(texts)}), path)
    return path


def test_new_refuses_a_place_that_holds_anything(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "one", "two")
    job = make_job(model_folder, path, tmp_path / "out", mode="new")
    assert len(run(job)) == 2
    with pytest.raises(InputError, match=r"mode='new'.*holds something"):
        run(job)


def test_a_folder_of_something_else_is_refused_in_every_mode(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "one")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    for mode in ("resume", "new", "overwrite", "append"):
        with pytest.raises(InputError, match="holds"):
            run(make_job(model_folder, path, tmp_path / "out", mode=mode))
    assert (tmp_path / "out" / "diary.txt").read_text() == "dear diary"


def test_other_settings_are_refused_by_their_name(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "one")
    run(make_job(model_folder, path, tmp_path / "out"))
    with pytest.raises(CheckpointMismatch, match=r"generation.beam_size was 2, is now 3.*--mode overwrite"):
        run(make_job(model_folder, path, tmp_path / "out", beam_size=3))
    run(make_job(model_folder, path, tmp_path / "out", batch_rows=3))  # changes no result


def test_while_an_overwrite_goes_on_the_old_data_stay_whole_and_then_the_new_are(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", "one", "two", "three", "four")
    old = run(make_job(model_folder, path, tmp_path / "out"), unit_rows=1)
    job = make_job(model_folder, path, tmp_path / "out", mode="overwrite", provenance=True)
    for seed in range(2):  # killed twice
        with pytest.raises(KeyboardInterrupt):
            run(job, seed, 1, most_units=1)
        assert read_output(tmp_path / "out").equals(old) and (tmp_path / "out" / "_SUCCESS").exists()
    assert "finished" in status(StatusJob(out=str(tmp_path / "out")))
    assert "units: 2 of 4" in status(StatusJob(out=str(tmp_path / "out")))
    new = run(job, 2, 1)
    assert new["row"].to_pylist() == [0, 1, 2, 3]
    assert not place.has_manifest(place.aside(str(tmp_path / "out")))
    assert run(job).equals(new), "a finished overwrite of the same settings is left"


def test_append_adds_the_files_that_are_new(run: Run, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", "one", "two")
    out = tmp_path / "out"
    run(make_job(model_folder, tmp_path / "in", out))
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    write(tmp_path / "in" / "b.parquet", "three", "four", "five")
    with pytest.raises(CheckpointMismatch, match=r"b\.parquet"):
        run(make_job(model_folder, tmp_path / "in", out))
    job = make_job(model_folder, tmp_path / "in", out, mode="append")
    with pytest.raises(KeyboardInterrupt):
        run(job, unit_rows=1, most_units=1)
    assert not (out / "_SUCCESS").exists()
    table = run(job, unit_rows=1)
    assert table["source"].to_pylist() == ["one", "two", "three", "four", "five"]
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what was there is not written again"
    only_new = make_job(model_folder, write(tmp_path / "c.parquet", "six"), out, mode="append")
    assert run(only_new)["source"].to_pylist()[-1] == "six"
    assert len(run(only_new)) == 6, "the same again adds nothing"
    assert json.loads((out / "_manifest.json").read_text())["rows"] == 6


def test_append_refuses_other_settings_columns_and_an_empty_place(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "one")
    with pytest.raises(InputError, match="nothing to add to"):
        run(make_job(model_folder, path, tmp_path / "none", mode="append"))
    run(make_job(model_folder, path, tmp_path / "out"))
    other = write(tmp_path / "b.parquet", "two")
    with pytest.raises(CheckpointMismatch, match="beam_size"):
        run(make_job(model_folder, other, tmp_path / "out", mode="append", beam_size=3))
    pq.write_table(pa.table({"source": ["x"], "more": [1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"not so: more \(int64\); predict"):
        run(make_job(model_folder, tmp_path / "c.parquet", tmp_path / "out", mode="append"))
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_second_job_at_the_same_place_is_refused(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "one")
    job = make_job(model_folder, path, tmp_path / "out")
    with job_module.Lock(str(tmp_path / "out")):
        with pytest.raises(InputError, match="is worked on by process"):
            run(job)
        assert "running (process" in status(StatusJob(out=str(tmp_path / "out"))), "it has not planned its units yet"
    with pytest.raises(InputError, match="not begun"):
        status(StatusJob(out=str(tmp_path / "out")))
    assert len(run(job)) == 1


def test_status_tells_a_run_that_stopped_from_one_that_goes_on(run: Run, model_folder: str, tmp_path: Path) -> None:
    job = make_job(model_folder, write(tmp_path / "a.parquet", *["one"] * 9), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, unit_rows=3, most_units=2)
    place = StatusJob(out=str(tmp_path / "out"))
    assert "stopped" in status(place) and "units: 2 of 3" in status(place) and "rows: 6 of 9" in status(place)
    with job_module.Lock(job.out):
        assert "running (process" in status(place) and "time left" in status(place)
        told = json.loads(status(replace(place, json=True)))
    assert (told["state"], told["units"], told["units_in_all"]) == ("running", 2, 3)
    assert (told["rows"], told["rows_in_all"], told["errors"]) == (6, 9, {})
    assert told["seconds_left"] == pytest.approx(3 / told["rows_per_second"], abs=0.1)
    assert told["target_tokens_per_second"] > 0 and told["replacement"] is None
    run(job, unit_rows=3)
    assert "finished" in status(place)
    assert json.loads(status(replace(place, json=True)))["seconds_left"] is None


def test_status_counts_the_rows_of_units_that_are_done_and_says_where_others_are_guessed(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):  # of compressed text nobody knows the rows before it is read
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(b"one\n" * 200))
    job = make_job(model_folder, tmp_path / "*.gz", tmp_path / "out", max_length=2)
    with pytest.raises(KeyboardInterrupt):
        run(job, unit_rows=1000, most_units=1)
    place = StatusJob(out=job.out)
    told = json.loads(status(replace(place, json=True)))
    assert told["rows"] == 200 < told["rows_in_all"] != 400 and told["rows_in_all_guessed"]
    assert f"rows: 200 of about {told['rows_in_all']}" in status(place)
    run(job, unit_rows=1000)
    told = json.loads(status(replace(place, json=True)))
    assert "rows: 400 of 400\n" in status(place)
    assert (told["rows_in_all"], told["rows_in_all_guessed"]) == (400, False)


def test_modes_and_lock_in_an_object_store(
    run: Run, model_folder: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = s3.place("bucket", "in/a.parquet"), s3.place("bucket", "deep/out")
    storage.publish_table(source, pa.table({"source": ["one", "two", "three"]}))

    def rows() -> list[dict]:
        found = []
        for path in storage.list_files(out):
            if "/part-" in path:
                with storage.open_input(path) as file:
                    found += pq.read_table(file).to_pylist()
        return found

    def carry_out(job: object, **options: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("tests.inference.conftest.read_output", lambda place: None)
            run(job, **options)

    with pytest.raises(KeyboardInterrupt):
        carry_out(make_job(model_folder, source, out), unit_rows=1, most_units=1)
    with job_module.Lock(out), pytest.raises(InputError, match="is worked on by process"):
        carry_out(make_job(model_folder, source, out))
    carry_out(make_job(model_folder, source, out), unit_rows=1)
    assert [row["source"] for row in rows()] == ["one", "two", "three"]
    carry_out(make_job(model_folder, source, out, mode="overwrite", provenance=True), unit_rows=2)
    assert [row["row"] for row in rows()] == [0, 1, 2]
    more = s3.place("bucket", "more/b.parquet")
    storage.publish_table(more, pa.table({"source": ["four"]}))
    carry_out(make_job(model_folder, more, out, mode="append", provenance=True))
    assert [row["source"] for row in rows()] == ["one", "two", "three", "four"]
    assert "finished" in status(StatusJob(out=out))
    assert not storage.exists(place.aside(out))
