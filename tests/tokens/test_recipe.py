"""Files and columns of a corpus that cannot be used are refused by the setting that gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tokens.test_tokenize import line, write_lines
from tfray.config import CorpusConfig, PartConfig
from tfray.errors import InputError
from tfray.tokens.recipe import find_corpora


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train": "none.jsonl"}, r"^corpus\.train='.*/none\.jsonl' does not exist"),
        ({"train": "a.jsonl", "valid": "none.jsonl"}, r"^corpus\.valid='.*/none\.jsonl' does not exist"),
        ({"train": "a.jsonl", "test": "*.csv"}, r"^corpus\.test='.*/\*\.csv' matches no file"),
        ({"train": "a.en", "train_target": "none.de"}, r"^corpus\.train_target='.*/none\.de' does not exist"),
        ({"train": "a.en", "train_target": ["a.en", "a.en"]}, r"^corpus\.train_target needs one target file for each"),
        ({"train": "a.jsonl", "train_target": "a.en"}, r"a\.jsonl' is jsonl .*: leave '.*a\.en' out"),
        ({"train": "a.en"}, r"a\.en' is plain text .* give corpus\.train_target, or a file with columns"),
        ({"train": "a.jsonl", "test": "a.en"}, r"a\.en' is plain text .* give a file with columns"),
        ({"train": "other.jsonl", "source_column": "x"}, r"no column target or label .*by corpus\.target_column"),
        ({"train": "bad.parquet"}, r"^corpus\.train: none of its files .* mend the file, or name others"),
        ({"train": "empty.jsonl"}, r"^corpus\.train: no row in .* name others"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_setting(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    make_files(tmp_path)
    columns = {name: value for name, value in given.items() if name.endswith("column")}
    files = {name: in_folder(tmp_path, value) for name, value in given.items() if name not in columns}
    with pytest.raises(InputError, match=named):
        find_corpora(CorpusConfig(**files, **columns))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"files": "none.jsonl"}, r"^corpus\.parts \(news\)\.files='.*/none\.jsonl' does not exist"),
        ({"files": "a.en"}, r"is plain text .* give corpus\.parts \(news\)\.target_files, or a file with columns"),
        ({"files": "a.jsonl", "target_column": "de"}, r"^corpus\.parts \(news\)\.target_column='de' is not in"),
    ],
)
def test_a_part_is_refused_by_its_name(tmp_path: Path, given: dict[str, str], named: str) -> None:
    make_files(tmp_path)
    part = PartConfig(name="news", **given | {"files": in_folder(tmp_path, given["files"])})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=named):
        find_corpora(CorpusConfig(parts=[part]))


@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_target_side_without_its_source_side_is_not_left_out_in_silence(name: str) -> None:
    with pytest.raises(InputError, match=rf"^corpus\.{name}_target='a\.de' .* corpus\.{name}, which names no file"):
        CorpusConfig(**({"train": "a.jsonl"} if name == "valid" else {}), **{f"{name}_target": "a.de"})


def test_a_part_without_files_is_not_left_out_in_silence() -> None:
    with pytest.raises(InputError, match=r"^corpus\.parts \(news\)\.files=\[\] names no file; .* leave the corpus out"):
        PartConfig(name="news", files=[])


def make_files(folder: Path) -> None:
    """Write files of all kinds that a corpus may name."""
    write_lines(folder / "a.jsonl", [line(("a", "b"))])
    write_lines(folder / "other.jsonl", [b'{"x": "a", "y": "b"}'])
    (folder / "a.en").write_text("a\n")
    (folder / "bad.parquet").write_bytes(b"no Parquet")
    (folder / "empty.jsonl").touch()


def in_folder(folder: Path, names: str | list[str]) -> Any:
    """Return one name or many as paths in a folder."""
    return f"{folder}/{names}" if isinstance(names, str) else [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize("header", [b"", b"\xff,b", b'"open,b'])
def test_a_file_whose_header_names_no_columns_is_left_out_and_ends_no_job(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(header + b"\nx,y\n")
    (tmp_path / "b.csv").write_bytes(b"source,target\nx,y\n")
    (corpus,) = find_corpora(CorpusConfig(train=str(tmp_path)))
    assert [Path(file.path).name for file in corpus.files] == ["b.csv"]
    assert "other_schema" in corpus.lost[0].reason and "must name the columns" in corpus.lost[0].reason


@pytest.mark.parametrize("weight", [None, float("inf"), "2"])
def test_a_weight_that_is_no_number_is_refused_by_its_corpus(weight: Any) -> None:
    with pytest.raises(InputError, match=r"corpus\.parts \(news\)\.weight=.* must be a finite number"):
        PartConfig(name="news", files="a.jsonl", weight=weight)
