"""Normalizing: the same as an obvious slow way, once and for all, whatever the Unicode."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import TextConfig
from tfray.corpus.normalize import COMPOSED, normalize

SPACES = "".join(c for c in map(chr, range(0x10000)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")
# Characters that one library's Unicode version does not know and another's does would differ: leave them out.
CHARACTERS = (
    st.characters(exclude_categories=["Cs", "Cn"])
    | st.sampled_from(SPACES + "ab  \x00\x01\x1c\x1f\x7f\x80\x9f\ufeff\u200b")
    | st.sampled_from("e\u0301\u0338\u0327\u0345é¨ﬁ①Ａﷺ각ᄀ\u1161\u11a8\u2126\u0344\u1e9b\u0323か\u3099\u09c7\u09be")
    | st.sampled_from("AZÄÉİΣIJHTẞ\u212aⒶⅣ\U00010400Dž\u0331\u030c\u0307\u0308")
)
TEXTS = st.lists(st.none() | st.text(CHARACTERS, max_size=12), max_size=6)
CONFIGS = st.builds(
    TextConfig,
    unicode=st.sampled_from(["nfc", "nfkc", "off"]),
    control_characters=st.booleans(),
    whitespace=st.booleans(),
    lowercase=st.booleans(),
)


def slow(text: str | None, config: TextConfig) -> str | None:
    """Return one text normalized, in plain Python."""
    if text is None:
        return None
    if config.control_characters:
        text = "".join(c for c in text if c in SPACES or (unicodedata.category(c) != "Cc" and c != "\ufeff"))
    if config.unicode != "off":
        text = unicodedata.normalize(config.unicode.upper(), text)
    if config.lowercase:  # letter by letter, so that one stays one: no dot behind an i, no final sigma
        text = "".join("i" if c == "İ" else c.lower() for c in text)
        if config.unicode != "off":
            text = unicodedata.normalize(config.unicode.upper(), text)
    return re.sub(f"[{SPACES}]+", " ", text).strip(" ") if config.whitespace else text


def as_array(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.string())


@given(TEXTS, CONFIGS)
def test_normalizing_is_what_plain_python_does_and_again_changes_nothing(texts: list, config: TextConfig) -> None:
    found = normalize(as_array(texts), config)
    found.validate(full=True)
    assert found.to_pylist() == [slow(text, config) for text in texts]
    assert normalize(found, config).equals(found)


@given(TEXTS, st.data())
def test_a_slice_of_a_column_is_normalized_as_the_column_is(texts: list, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(texts)))
    stop = data.draw(st.integers(start, len(texts)))
    config = TextConfig()
    part = as_array(texts)[start:stop]
    assert normalize(part, config).to_pylist() == normalize(as_array(texts), config).to_pylist()[start:stop]


@given(st.text(CHARACTERS))
def test_text_that_is_written_the_same_is_the_same_after_normalizing(text: str) -> None:
    config = TextConfig(control_characters=False)
    texts = [text, unicodedata.normalize("NFD", text), f" {text}\n", text.replace(" ", "\u3000\xa0")]
    assert len(set(normalize(as_array(texts), config).to_pylist())) == 1


def test_text_of_the_blocks_that_are_not_composed_is_composed_already() -> None:
    safe = re.compile(f"[{re.sub(r'x{([0-9a-f]+)}', lambda code: f'U{code[1]:>08}', COMPOSED)}]")
    letters = set(filter(safe.match, map(chr, range(sys.maxunicode + 1))))
    assert "я" in letters and len(letters) > 30_000
    assert all(unicodedata.is_normalized("NFC", letter) and not unicodedata.combining(letter) for letter in letters)
    parts = [unicodedata.normalize("NFD", letter) for letter in map(chr, range(sys.maxunicode + 1))]
    assert not any(
        letters.intersection(part[1:]) for part in parts if len(part) > 1 and unicodedata.normalize("NFC", part) != part
    )


@pytest.mark.parametrize("text", ["ﬁ", "①", "Ａ", "ß", "İ", "a\u200bb", "\u200d", "a b", ""])
def test_compatibility_letters_case_and_joiners_are_left_alone(text: str) -> None:
    assert normalize(as_array([text]), TextConfig()).to_pylist() == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a\t\u2028b\u3000", "a b"),
        ("e\x01\u0301", "é"),  # the control character stood between a letter and its accent
        ("a \x02 b", "a b"),
        ("\ufeffa\x00", "a"),
        ("a\r\nb\x85c", "a b c"),
        ("\xa0\u2003", ""),
    ],
)
def test_the_order_of_the_steps_leaves_nothing_to_do(text: str, expected: str) -> None:
    assert normalize(as_array([text]), TextConfig()).to_pylist() == [expected]


@given(TEXTS, CONFIGS)
def test_in_lower_case_no_capital_is_left(texts: list, config: TextConfig) -> None:
    found = normalize(as_array(texts), replace(config, lowercase=True)).to_pylist()
    assert not any(unicodedata.category(c) in ("Lu", "Lt") and c.lower() != c for text in found if text for c in text)


def test_text_that_needs_nothing_is_not_copied() -> None:
    texts = as_array(["plain text", None, "of ASCII"])
    assert normalize(texts, TextConfig()) is texts


@pytest.mark.parametrize("texts", [[], [None], [None, None], ["", ""], [""]])
def test_columns_without_a_byte_stay_as_they_are(texts: list) -> None:
    assert normalize(as_array(texts), TextConfig()).to_pylist() == texts
