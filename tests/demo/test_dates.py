"""The demo's dates: split by day, each text means one day, and the names are right."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tfray.demo.dates import STYLES, all_days, write_dates, write_day
from tfray.errors import InputError

SPLITS = ["train", "valid", "test"]

Rows = list[dict[str, str]]


def read(folder: Path, split: str) -> Rows:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def days_of(rows: Rows) -> set[str]:
    return {row["target"] for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dates")
    write_dates(folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, Rows]:
    return {split: read(folder, split) for split in SPLITS}


def test_no_held_out_date_occurs_in_training(splits: dict[str, Rows]) -> None:
    train, valid, test = (days_of(splits[split]) for split in SPLITS)
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_splits_have_the_promised_rows_and_columns(splits: dict[str, Rows]) -> None:
    assert [len(splits[split]) for split in SPLITS] == [40_000, 500, 1000]
    for rows in splits.values():
        assert list(rows[0]) == ["source", "target", "language"]


def test_every_language_writes_every_year_month_and_day_in_training(
    splits: dict[str, Rows],
) -> None:
    for language in STYLES:
        days = [date.fromisoformat(row["target"]) for row in splits["train"] if row["language"] == language]
        assert {day.year for day in days} == set(range(1900, 2100))
        assert {(day.month, day.day) for day in days} >= {(m, d) for m in range(1, 13) for d in (1, 28)}


def test_the_seed_decides_the_rows(folder: Path, tmp_path: Path) -> None:
    write_dates(tmp_path / "same")
    write_dates(tmp_path / "other", seed=2)
    for split in SPLITS:
        assert read(tmp_path / "same", split) == read(folder, split)
        assert read(tmp_path / "other", split) != read(folder, split)


def test_more_rows_than_days_write_days_again(tmp_path: Path) -> None:
    write_dates(tmp_path, train_rows=80_000)
    train = read(tmp_path, "train")
    assert len(train) == 80_000
    assert len(days_of(train)) == len(all_days()) - 1500


def test_a_written_date_means_one_day_in_all_languages_and_styles() -> None:
    meaning: dict[str, str] = {}
    # Two leap years whose digits could be taken for each other, and for days and months.
    for day in (day for day in all_days() if day.year in (1912, 2012)):
        for language, styles in STYLES.items():
            for style in styles:
                row = write_day(day, language, style)
                assert meaning.setdefault(row.source, row.target) == row.target


@pytest.mark.parametrize("language", STYLES)
def test_weekday_names_are_correct(splits: dict[str, Rows], language: str) -> None:
    names = {
        "en": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
        "de": ["montag", "dienstag", "mittwoch", "donnerstag", "freitag", "samstag", "sonntag"],
        "fr": ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"],
        "zh": ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"],
    }[language]
    rows = [row for row in splits["train"] if row["language"] == language]
    named = [(name, row) for row in rows for name in names if name in row["source"].lower()]
    assert len(named) > 1000
    for name, row in named:
        assert name == names[date.fromisoformat(row["target"]).weekday()]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Friday, March 1, 2024"),
        ("en", "the 1st of March 2024"),
        ("de", "Freitag, den 1. März 2024"),
        ("de", "Fr, 1.3.2024"),
        ("fr", "le vendredi 1er mars 2024"),
        ("zh", "2024年3月1日 星期五"),
        ("zh", "二〇二四年三月一日"),
    ],
)
def test_dates_are_written_as_people_write_them(language: str, text: str) -> None:
    day = date(2024, 3, 1)
    assert text in {write_day(day, language, style).source for style in STYLES[language]}


@pytest.mark.parametrize(
    ("day", "text"),
    [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (30, "30th")],
)
def test_english_ordinals_have_their_suffix(day: int, text: str) -> None:
    written = {write_day(date(2011, 5, day), "en", style).source for style in STYLES["en"]}
    assert f"May {text}, 2011" in written


@pytest.mark.parametrize(("day", "numeral"), [(10, "十"), (11, "十一"), (20, "二十"), (31, "三十一")])
def test_chinese_numerals_are_written_as_spoken(day: int, numeral: str) -> None:
    written = {write_day(date(2010, 10, day), "zh", style).source for style in STYLES["zh"]}
    assert f"二〇一〇年十月{numeral}日" in written


def test_missing_babel_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel.dates", None)
    with pytest.raises(InputError, match=r"pip install 'tfray\[demo\]'"):
        write_dates(tmp_path)
