"""What stands on the command line becomes the settings of a job."""

import pytest

from tfray import config
from tfray.cli import name_folder, read_job, spell_out


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
    assert spell_out(given) == spelled


def test_the_one_folder_of_a_command_needs_no_flag() -> None:
    assert name_folder("status", ["out"]) == ["--out", "out"]
    assert name_folder("predict", ["out"]) == ["out"]


def test_settings_that_may_change_are_named_one_by_one() -> None:
    given = ["--tokens_folder", "a", "--out", "b", "--allow-change", "x.y", "--allow_change", "z"]
    assert read_job("train", config.TrainJob, given).allow_change == ["x.y", "z"]
    given = ["--corpus.train", "a", "--test", "b", "--out", "c", "--allow-change", "training.epochs"]
    assert read_job("run", config.RunJob, given).allow_change == ["training.epochs"]
