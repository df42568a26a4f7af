"""What stands on the command line becomes the settings of a job."""

import io
from pathlib import Path

import pytest

from tfray import config
from tfray.cli import escape_unprintable, name_folder, read_job, spell_out
from tfray.errors import InputError
from tfray.units.ledger import store_settings


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ([], []),
        (["--address", "auto"], ["--cluster.address", "auto"]),
        (["--address=auto"], ["--cluster.address=auto"]),
        (["--allow-change", "a.b"], ["--allow_change+", "a.b"]),
        (["--dry-run"], ["--dry_run=true"]),
        (["--dry-run", "--out", "x"], ["--dry_run=true", "--out", "x"]),
        (["--dry-run", "false"], ["--dry_run", "false"]),
        (["--overwrite", "--cluster.autoscaling"], ["--overwrite=true", "--cluster.autoscaling=true"]),
        (["--overwrite", "true"], ["--overwrite", "true"]),
        (
            ["--fail-fast", "--max-error-rate", "0.1"],
            ["--inference.fail_fast=true", "--inference.max_error_rate", "0.1"],
        ),
    ],
)
def test_short_flags_stand_for_full_ones(given: list[str], spelled: list[str]) -> None:
    flags = {"--dry_run", "--overwrite", "--cluster.autoscaling", "--inference.fail_fast"}
    assert spell_out(given, flags) == spelled


def test_every_setting_of_yes_or_no_is_true_where_it_stands_alone() -> None:
    given = ["--model_folder", "a", "--input", "b", "--out", "c"]
    job = read_job("predict", config.PredictJob, ["--inference.provenance", "--fail-fast", *given])
    assert job.inference.provenance and job.inference.fail_fast


def test_the_one_folder_of_a_command_needs_no_flag() -> None:
    assert name_folder("status", ["out"]) == ["--out", "out"]
    assert name_folder("predict", ["out"]) == ["out"]


@pytest.mark.parametrize(
    "given",
    [
        ["out", "--json"],
        ["--json", "out"],
        ["--json", "true", "out"],
        ["--json=yes", "out"],
        ["--json", "--out", "out"],
    ],
)
def test_the_folder_may_stand_before_and_after_a_setting_of_yes_or_no(given: list[str]) -> None:
    job = read_job("status", config.StatusJob, given)
    assert (job.out, job.json) == ("out", True)


def test_the_folder_may_stand_anywhere_but_where_a_setting_has_its_value() -> None:
    job = read_job("inspect", config.InspectJob, ["--batches.max_tokens", "64", "out", "--batches.lanes=2"])
    assert (job.tokens_folder, job.batches.max_tokens, job.batches.lanes) == ("out", 64, 2)
    for given in (["one", "two"], ["one", "--out", "two"]):
        with pytest.raises(InputError, match="unrecognized arguments"):
            read_job("status", config.StatusJob, given)


def test_settings_that_may_change_are_named_one_by_one() -> None:
    given = ["--tokens_folder", "a", "--out", "b", "--allow-change", "x.y", "--allow_change", "z"]
    assert read_job("train", config.TrainJob, given).allow_change == ["x.y", "z"]
    given = ["--corpus.train", "a", "--test", "b", "--out", "c", "--allow-change", "training.epochs"]
    assert read_job("run", config.RunJob, given).allow_change == ["training.epochs"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corpus:\n  # train: a.parquet\n", "corpus has no value; give one, or leave the name out"),
        ("training: 3\n", "training=3 must be a group of settings"),
        ("training:\n  epochs:\n", r"training\.epochs has no value"),
        (
            "corpus: {held_out: off}\n",
            "a YAML file reads yes, no, on and off as true",
        ),
        (
            "training: {workers: {min: 4, max: 2}}\n",
            r"^training\.workers=\{'min': 4, 'max': 2\} must have 1 <= min <= max$",
        ),
        ("all: &it [*it]\n", "stands in itself"),
        ('corpus: {train: "a\\0b"}\n', r"corpus\.train='a\\x00b' has a NUL character"),
        ("training: {workers: auto}\n", r'training\.workers must be a whole number, or a range such as \{"min": 1'),
        ("training: {workers: {min: 1}}\n", r'training\.workers must be a whole number, or a range such as \{"min": 1'),
        ("", "--config names a file without settings; write them as YAML"),
        ("# nothing yet\n", "--config names a file without settings; write them as YAML"),
    ],
)
def test_a_file_of_settings_that_says_nothing_of_use_is_refused_by_the_settings_name(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_job("run", config.RunJob, ["--config", str(path), "--out", "o", "--test", "t"])


def test_a_file_of_settings_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("out: Grün\n".encode("latin-1"))
    with pytest.raises(InputError, match="utf-8"):
        read_job("run", config.RunJob, ["--config", str(path)])


def test_words_that_yaml_takes_for_truths_are_explained_among_labels_too() -> None:
    with pytest.raises(InputError, match="a YAML file reads yes, no, on and off as true"):
        read_job("evaluate", config.EvaluateJob, ["--predictions", "p", "--label_names", "{0: no, 1: yes}"])


def test_labels_may_be_numbers_and_truths_in_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text("predictions: p\nlabel_names: {0: negative, true: positive}\n")
    job = read_job("evaluate", config.EvaluateJob, ["--config", str(path)])
    assert job.label_names == {"0": "negative", "true": "positive"}


def test_a_terminal_that_lacks_a_script_is_shown_escapes() -> None:
    inner = io.BytesIO()
    stream = io.TextIOWrapper(inner, encoding="latin-1")
    escape_unprintable(stream)
    print("Grün 三月", file=stream, flush=True)
    assert inner.getvalue() == b"Gr\xfcn \\u4e09\\u6708\n"


@pytest.mark.parametrize(
    "text", ["training: {epochs: 3}\nmodel: {preset: tiny}\ntraining: {seed: 2}\n", "corpus: {parts: [{a: 1, a: 2}]}\n"]
)
def test_a_name_that_stands_twice_in_a_file_of_settings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"line \d names '\w+' for the second time; put both in one place"):
        read_job("run", config.RunJob, ["--config", str(path), "--out", "o", "--test", "t"])


@pytest.mark.parametrize(
    "text", ["12e03", "1e5", "1_0", "-1", "0x1f", ".5", "yes", "null", "~", "2026-11-30", "a: b", ""]
)
def test_stored_settings_read_back_whatever_their_text_looks_like(tmp_path: Path, text: str) -> None:
    job = config.EvaluateJob(predictions="p", label_names={text: text, "a": text})
    store_settings(str(tmp_path), job)
    assert read_job("evaluate", config.EvaluateJob, ["--config", str(tmp_path / "_config.yaml")]) == job
