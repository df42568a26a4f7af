"""The demo in places where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfray.config import DemoJob
from tfray.demo.demo import date_job, demo
from tfray.errors import InputError


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        demo(DemoJob(out=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_the_demo_is_made_anew_where_that_is_asked_for(tmp_path: Path) -> None:
    assert date_job(DemoJob(out=str(tmp_path), overwrite=True), tmp_path).overwrite
