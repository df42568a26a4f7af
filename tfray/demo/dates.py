"""Data for `tfray demo`: dates as people write them -> ISO 8601.

Names and orders come from CLDR (through Babel); a style is one of its patterns and, where people
depart from it, a rewrite of the text. Every text means one day: years have four digits, and a date
in digits alone is either German (dots, day first) or Chinese (year first).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa

from tfray import storage
from tfray.errors import InputError

FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
VALID_ROWS, TEST_ROWS = 500, 1000
SCHEMA = pa.schema([("source", pa.string()), ("target", pa.string()), ("language", pa.string())])

CHINESE_DIGITS = "〇一二三四五六七八九"


def unchanged(text: str) -> str:
    """Return the text."""
    return text


def without_commas(text: str) -> str:
    """Return 'Sunday March 3 2024' for 'Sunday, March 3, 2024'."""
    return text.replace(",", "")


def with_ordinal(text: str) -> str:
    """Return 'March 3rd, 2024' for 'March 3, 2024'."""
    return re.sub(r"\b\d{1,2}\b", lambda day: day[0] + english_suffix(int(day[0])), text)


def english_suffix(day: int) -> str:
    """Return what English writes after the day of a month: st, nd, rd or th."""
    if 11 <= day <= 13:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def with_premier(text: str) -> str:
    """Return '1er mars 2024' for '1 mars 2024'; French counts only the first day."""
    return re.sub(r"\b1\b", "1er", text)


def in_chinese_numerals(text: str) -> str:
    """Return '二〇二四年三月二十一日' for '2024年3月21日'."""
    return re.sub(r"\d+", lambda number: chinese_numeral(number[0]), text)


def chinese_numeral(digits: str) -> str:
    """Return a year digit by digit, and a month or day as it is spoken."""
    if len(digits) == 4:
        return "".join(CHINESE_DIGITS[int(digit)] for digit in digits)
    tens, ones = divmod(int(digits), 10)
    tens_numeral = ("", "十", "二十", "三十")[tens]
    return tens_numeral + (CHINESE_DIGITS[ones] if ones else "")


@dataclass(frozen=True)
class Style:
    """One way to write a date."""

    locale: str
    pattern: str
    """CLDR pattern, or the name of the locale's own: full, long or medium."""
    rewrite: Callable[[str], str] = unchanged


STYLES: dict[str, list[Style]] = {
    "en": [
        Style("en_US", "full"),  # Sunday, March 3, 2024
        Style("en_US", "long"),
        Style("en_US", "long", with_ordinal),
        Style("en_US", "long", str.lower),
        Style("en_US", "medium"),
        Style("en_US", "medium", without_commas),
        Style("en_US", "EEE, MMM d, y"),
        Style("en_GB", "full"),  # Sunday, 3 March 2024
        Style("en_GB", "full", without_commas),
        Style("en_GB", "long"),
        Style("en_GB", "long", with_ordinal),
        Style("en_GB", "medium"),
        Style("en_GB", "medium", str.lower),
        Style("en_GB", "EEE d MMM y"),
        Style("en_GB", "'the' d 'of' MMMM y", with_ordinal),
    ],
    "de": [
        Style("de_DE", "full"),  # Sonntag, 3. März 2024
        Style("de_DE", "EEEE, 'den' d. MMMM y"),
        Style("de_DE", "long"),
        Style("de_DE", "long", str.lower),
        Style("de_DE", "'den' d. MMMM y"),
        Style("de_DE", "d. MMM y"),
        Style("de_DE", "medium"),
        Style("de_DE", "d.M.y"),
        Style("de_DE", "ccc, d.M.y"),
    ],
    "fr": [
        Style("fr_FR", "full"),  # dimanche 3 mars 2024
        Style("fr_FR", "full", with_premier),
        Style("fr_FR", "full", str.capitalize),  # as at the head of a letter
        Style("fr_FR", "'le' EEEE d MMMM y", with_premier),
        Style("fr_FR", "long"),
        Style("fr_FR", "long", with_premier),
        Style("fr_FR", "'le' d MMMM y", with_premier),
        Style("fr_FR", "medium"),
        Style("fr_FR", "EEE d MMM y"),
    ],
    "zh": [
        Style("zh_Hans_CN", "full"),  # 2024年3月3日星期日
        Style("zh_Hans_CN", "y年M月d日 EEEE"),
        Style("zh_Hans_CN", "y年M月d日(EEE)"),
        Style("zh_Hans_CN", "long"),
        Style("zh_Hans_CN", "long", in_chinese_numerals),
        Style("zh_Hans_CN", "y 年 M 月 d 日"),
        Style("zh_Hans_CN", "y年MM月dd日"),
        Style("zh_Hans_CN", "y年M月d号"),
        Style("zh_Hans_CN", "y/M/d"),
    ],
}


@dataclass(frozen=True)
class WrittenDate:
    """One row: a date as somebody wrote it, the day that it means, and the language."""

    source: str
    target: str
    language: str


def write_dates(folder: Path, seed: int = 1, train_rows: int = 40_000) -> None:
    """Write train.parquet, valid.parquet and test.parquet, which share no day in any language."""
    generator = random.Random(seed)
    days = all_days()
    generator.shuffle(days)
    held_out = VALID_ROWS + TEST_ROWS
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "valid.parquet", write_out(days[:VALID_ROWS], generator))
    write_rows(folder / "test.parquet", write_out(days[VALID_ROWS:held_out], generator))
    train_days = islice(cycle(days[held_out:]), train_rows)
    write_rows(folder / "train.parquet", write_out(train_days, generator))


def all_days() -> list[date]:
    """Return the days of two centuries in order."""
    return [FIRST_DAY + timedelta(days=n) for n in range((LAST_DAY - FIRST_DAY).days + 1)]


def write_out(days: Iterable[date], generator: random.Random) -> list[WrittenDate]:
    """Return each day in a random language and style."""
    return [write_day(day, *random_style(generator)) for day in days]


def random_style(generator: random.Random) -> tuple[str, Style]:
    """Return a language and one of its styles; languages are equally likely."""
    language = generator.choice(list(STYLES))
    return language, generator.choice(STYLES[language])


def write_day(day: date, language: str, style: Style) -> WrittenDate:
    """Return the day as the style writes it."""
    text = babel_format_date()(day, format=style.pattern, locale=style.locale)
    return WrittenDate(style.rewrite(text), day.isoformat(), language)


def babel_format_date() -> Callable[..., str]:
    """Return Babel's format_date, which only the demo needs."""
    try:
        from babel.dates import format_date
    except ImportError as error:
        raise InputError(
            "the demo's dates need the library Babel, which is not installed; run: pip install 'tfray[demo]'"
        ) from error
    return format_date


def write_rows(path: Path, rows: list[WrittenDate]) -> None:
    """Write the rows as one Parquet file."""
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA)
    storage.publish_table(str(path), table)
