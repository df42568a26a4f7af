"""Scripts: the share of a text's letters, counted as the names of its characters tell."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.corpus.scripts import MIXED, SCRIPTS, check_script, in_script, script_shares
from tfray.errors import InputError

LETTERS = {"latin": "abZéßſ", "cyrillic": "яЁж", "han": "好天", "hiragana": "かな", "hangul": "한글", "arabic": "سلام"}


def shares(texts: list[str | None], script: str) -> list[float]:
    return script_shares(pa.array(texts, pa.string()), script).tolist()


@given(
    st.lists(st.text(st.sampled_from("".join(LETTERS.values()) + "12 .,\u0301\u20ac"), max_size=12)),
    st.sampled_from(list(LETTERS)),
)
def test_a_share_is_that_of_the_letters(texts: list[str], script: str) -> None:
    def slow(text: str) -> float:
        letters = [c for c in text if unicodedata.category(c).startswith("L")]
        return sum(c in LETTERS[script] for c in letters) / len(letters) if letters else 1.0

    assert shares(texts, script) == [slow(text) for text in texts]


def test_marks_and_digits_do_not_count() -> None:
    assert shares(["हिन्दी", "हिन्दी abc", "१२ 12!", "", None], "Devanagari") == [1, 0.5, 1, 1, 1]


def test_japanese_and_korean_are_written_in_several_scripts() -> None:
    assert shares(["ひらがなと漢字とカタカナ", "한글 漢字", "abc"], "japanese") == [1, 0.5, 0]
    assert shares(["한글 漢字"], "korean") == [1]


@pytest.mark.parametrize("script", [*SCRIPTS, *MIXED])
def test_every_known_script_has_letters(script: str) -> None:
    check_script(script, "corpus.clean.source_script")
    check_script(script.upper(), "corpus.clean.source_script")
    assert in_script(script).sum() > 20


def test_an_unknown_script_is_refused_with_those_that_are_known() -> None:
    check_script(None, "corpus.clean.source_script")
    with pytest.raises(InputError, match=r"corpus.clean.target_script='german' .*cyrillic.*latin"):
        check_script("german", "corpus.clean.target_script")
