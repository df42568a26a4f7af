"""Where compiled kernels are kept, and by which compiler they are made."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest

from tfray.native import FLAGS, build, cache_folders, compiled_library

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return the cache's folder and the one that takes its place, both of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TFRAY_NATIVE", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "tfray", tmp_path / "temporary" / f"tfray-{os.getuid()}"


def write_source(folder: Path) -> Path:
    source = folder / "answer.c"
    source.write_text("#ifndef ANSWER\n#define ANSWER 42\n#endif\nint answer(void) { return ANSWER; }")
    return source


@needs_compiler
def test_a_library_that_a_power_cut_left_empty_is_made_in_another_folder(tmp_path: Path, folders: tuple[Path, Path]):
    source = write_source(tmp_path)
    library = build(next(cache_folders()), [source], FLAGS)
    library.write_bytes(b"")
    found = compiled_library([source], [])
    assert found is not None and found.answer() == 42
    assert (library.parent, library.stat().st_size) == (folders[0], 0)
    assert [path.name for path in folders[1].iterdir()] == [library.name]


@needs_compiler
def test_a_compiler_may_have_several_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "cc -DANSWER=7")
    found = compiled_library([write_source(tmp_path)], [])
    assert found is not None and found.answer() == 7


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false", "cc 'without an end"])
def test_a_compiler_that_fails_leaves_the_work_to_torch(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]
):
    monkeypatch.setenv("CC", compiler)
    assert compiled_library([write_source(tmp_path)], []) is None
    assert not [*folders[0].iterdir(), *folders[1].iterdir()]


def test_without_a_home_libraries_are_kept_in_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]
):
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert list(cache_folders()) == list(folders)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert list(cache_folders()) == [folders[1]]


@pytest.mark.parametrize("given", ["", "here"])
def test_a_cache_without_a_whole_path_is_not_looked_for_where_one_happens_to_stand(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert next(cache_folders()) == tmp_path / "home" / ".cache" / "tfray"
    assert not (tmp_path / "tfray").exists() and not (tmp_path / "here").exists()
