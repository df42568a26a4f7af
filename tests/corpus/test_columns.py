"""Which columns are meant: the usual names, or those that are named, or a refusal that lists what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfray.corpus.columns import SettingNames, check_columns, choose_columns, choose_source, missing_columns
from tfray.errors import InputError
from tfray.units.files import InputFile, find_files


def jsonl(folder: Path, *records: dict) -> list[InputFile]:
    """Return a folder's files, with one more of one record."""
    for record in records:
        path = folder / f"{len(list(folder.iterdir()))}.jsonl"
        path.write_text(json.dumps(record) + "\n")
    return find_files([str(folder)])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"source": "a", "target": "b"}, ("source", "target", "translation")),
        ({"id": 1, "text": "a", "label": 1}, ("text", "label", "classification")),
        ({"text": "a", "label": "pos"}, ("text", "label", "classification")),
        ({"text": "a", "target": "b"}, ("text", "target", "translation")),
        ({"source": "a", "text": "b", "target": "c", "label": 1}, ("source", "target", "translation")),
    ],
)
def test_the_usual_names_tell_source_target_and_task(tmp_path: Path, record: dict, expected: tuple) -> None:
    assert choose_columns(jsonl(tmp_path, record), None, None) == expected


def test_what_is_named_goes_before_what_is_usual(tmp_path: Path) -> None:
    files = jsonl(tmp_path, {"source": "a", "target": "b", "en": "c", "stars": 5})
    assert choose_columns(files, "en", "stars", "classification") == ("en", "stars", "classification")
    assert choose_columns(files, "en", "source") == ("en", "source", "translation")
    assert choose_columns(files, None, "target", "classification").task == "classification"
    assert choose_source(files, "en") == "en"
    assert choose_source(files, None) == "source"


def test_parallel_text_has_source_and_target_and_plain_text_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("a\n")
    (tmp_path / "a.de").write_text("b\n")
    files = find_files([f"{tmp_path}/a.en"], [f"{tmp_path}/a.de"])
    assert choose_columns(files, None, None) == ("source", "target", "translation")
    assert choose_source(find_files([f"{tmp_path}/a.en"]), None) == "source"
    alone = find_files([f"{tmp_path}/a.en"])
    with pytest.raises(InputError, match=r"a\.en' is plain text .* has no target; give a file with columns"):
        choose_columns(alone, None, None)
    with pytest.raises(InputError, match=r"has no target; give corpus\.train_target, or a file with columns"):
        choose_columns(alone, None, "de", settings=SettingNames(target_files="corpus.train_target"))


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    files = jsonl(tmp_path, {"english": "a", "german": "b"})
    with pytest.raises(InputError, match=r"no column source or text in .*english, german\); name it by source_column"):
        choose_columns(files, None, None)
    settings = SettingNames(target="corpus.target_column")
    with pytest.raises(InputError, match=r"no column target or label in .*german\); name it by corpus\.target_column"):
        choose_columns(files, "english", None, settings=settings)
    with pytest.raises(InputError, match=r"corpus\.target_column='de' is not in .*english, german"):
        choose_columns(files, "english", "de", settings=settings)
    with pytest.raises(InputError, match=r"source_column='en' is not in .*english, german"):
        choose_source(files, "en")


@pytest.mark.parametrize(("source", "target"), [("source", "source"), ("target", None), (None, "source")])
def test_one_column_is_not_source_and_target_at_once(tmp_path: Path, source: str | None, target: str | None) -> None:
    files = jsonl(tmp_path, {"source": "a", "target": "b"})
    settings = SettingNames(source="corpus.source_column", target="corpus.target_column")
    with pytest.raises(InputError, match=r"corpus\.source_column and corpus\.target_column are both .*two columns"):
        choose_columns(files, source, target, settings=settings)


def test_a_file_that_lacks_a_column_is_known_by_its_name_and_does_not_hide_the_others(tmp_path: Path) -> None:
    files = jsonl(tmp_path, {"other": 1}, {"source": "a", "target": "b"}, {"source": "a"}, {"source": 7, "target": "b"})
    columns = choose_columns(files, None, None)
    assert columns == ("source", "target", "translation")
    assert choose_source(files, None) == "source"
    reasons = [missing_columns(file, columns.needed, columns.text) for file in files]
    assert [reason is None for reason in reasons] == [False, True, False, True]
    assert "no column 'source'" in str(reasons[0]) and "other (int64)" in str(reasons[0])
    with pytest.raises(InputError, match=r"2\.jsonl.*no column 'target'"):
        check_columns(files[2], columns.needed, columns.text)


@pytest.mark.parametrize(
    "data", [b'[{"source": "a", "target": "b"}]\n', '{"source": "a", "target": "b"}\n'.encode("utf-16"), b"\n\n"]
)
def test_json_that_is_not_lines_of_objects_is_refused_as_that(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    files = find_files([str(tmp_path)])
    for choose in (lambda: choose_columns(files, None, None), lambda: choose_source(files, "source")):
        with pytest.raises(InputError, match=r"a\.json' is read as JSON lines .* in UTF-8; write one object"):
            choose()
    assert "is read as JSON lines" in str(missing_columns(files[0], {"source"}, {"source"}))


def test_columns_are_those_of_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"")
    (tmp_path / "1.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "2.csv").write_bytes(b"")
    (tmp_path / "3.csv").write_bytes(b"\nx,y\n")
    pq.write_table(pa.table({"source": [1], "target": ["b"]}), tmp_path / "4.parquet")
    pq.write_table(pa.table({"source": ["a"], "target": ["b"]}), tmp_path / "5.parquet")
    files = find_files([str(tmp_path)])
    columns = choose_columns(files, None, None)
    assert columns == ("source", "target", "translation")
    reasons = [missing_columns(file, columns.needed, columns.text) for file in files]
    words = ["not a readable Parquet file", "", None, "must name the columns", "is int64, not text", None]
    for reason, word in zip(reasons, words, strict=True):
        assert reason is None if word is None else word in str(reason)
    with pytest.raises(InputError, match=r"4\.parquet.*is int64, not text"):
        choose_columns(files[4:5], None, None)
    for file, reason in ((files[0], "not a readable Parquet file"), (files[1], "zlib inflate failed")):
        with pytest.raises(InputError, match=f"cannot be read: .*{reason}.*; replace or remove it$"):
            choose_source([file], None)
        with pytest.raises(InputError, match=r"cannot be read: .*; replace or remove it$"):
            check_columns(file, columns.needed, columns.text)


@pytest.mark.parametrize("values", [pa.array([1]), pa.array([b"x"]), pa.array([["x"]])], ids=str)
def test_a_parquet_source_that_is_not_text_is_refused_with_its_type(tmp_path: Path, values: pa.Array) -> None:
    pq.write_table(pa.table({"source": values, "target": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"'source' is {str(values.type).partition('<')[0]}.*, not text"):
        choose_columns(find_files([str(tmp_path)]), None, None)


@pytest.mark.parametrize("label", [pa.array([1]), pa.array([1.0]), pa.array([True]), pa.array(["a"])], ids=str)
def test_a_label_may_have_any_type_but_the_target_text_must_be_text(tmp_path: Path, label: pa.Array) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": label}), tmp_path / "a.parquet")
    files = find_files([str(tmp_path)])
    assert choose_columns(files, None, None).task == "classification"
    if label.type != pa.string():
        with pytest.raises(InputError, match="not text"):
            choose_columns(files, None, None, "translation")
