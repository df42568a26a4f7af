"""Texts -> texts of one Unicode form and, if wanted, case; without control characters and with plain spaces.

Whole columns at a time; what ASCII rows need is found by looking at bytes, and only rows that may
change go through Unicode and regular expressions.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is loaded)
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray.config import TextConfig

# Unicode's White_Space; Python's str.isspace() also counts U+001C to U+001F, which are control characters here.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000"
)
SPACE = f"[{WHITE_SPACE}]"
CONTROL = r"[\x00-\x08\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}\x{feff}]"
NEEDLESS_SPACE = rf"^ | $|  |{SPACE.replace(' ', '')}"
# What may not be composed yet. Letters of these blocks compose with nothing that is not outside of them, and
# to look for others takes a fifth of the time that composing takes.
COMPOSED = (
    r"\x00-\x{2ff}\x{388}-\x{3ff}\x{400}-\x{482}\x{48a}-\x{52f}\x{5d0}-\x{5ea}\x{620}-\x{64a}\x{1e00}-\x{1eff}"
    r"\x{2002}-\x{205e}\x{20a0}-\x{20bf}\x{3000}-\x{3029}\x{3041}-\x{3096}\x{30a1}-\x{30ff}\x{4e00}-\x{9fff}"
    r"\x{ac00}-\x{d7a3}\x{ff00}-\x{ffef}"
)
COMPOSABLE = {"nfc": f"[^{COMPOSED}]", "nfkc": r"[^\x00-\x7f]"}


def normalize(texts: pa.Array, config: TextConfig) -> pa.Array:
    """Return texts as the settings want them; normalizing again changes nothing, and nulls stay.

    Deleting first and spacing last makes it so: a deleted character may have kept a letter from its
    accent, and compatibility forms (NFKC) may bring spaces.
    """
    rows = changeable(texts, config.lowercase)
    if not rows.any():
        return texts
    mask = pa.array(rows)
    return pc.replace_with_mask(texts, mask, normalize_all(texts.filter(mask), config))


def normalize_all(texts: pa.Array, config: TextConfig) -> pa.Array:
    """Return every text normalized, however it looks."""
    if config.control_characters:
        texts = replace(texts, CONTROL, CONTROL, "")
    if config.unicode != "off":
        texts = compose(texts, config.unicode)
    if config.lowercase:
        texts = pc.utf8_lower(texts)
        if config.unicode != "off":  # some letters have a composed form in lower case alone, such as h with a line
            texts = compose(texts, config.unicode)
    if config.whitespace:
        texts = replace(texts, NEEDLESS_SPACE, f"{SPACE}+", " ")
        texts = pc.ascii_trim(texts, " ")
    return texts


def replace(texts: pa.Array, where: str, pattern: str, replacement: str) -> pa.Array:
    """Return texts with a pattern replaced in those rows in which another one is found."""
    return change(texts, where, lambda found: pc.replace_substring_regex(found, pattern, replacement))


def compose(texts: pa.Array, form: str) -> pa.Array:
    """Return texts in NFC or NFKC."""
    return change(texts, COMPOSABLE[form], lambda found: pc.utf8_normalize(found, form=form.upper()))


def change(texts: pa.Array, where: str, change_all: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Return texts with those rows changed in which a pattern is found."""
    mask = pc.fill_null(pc.match_substring_regex(texts, where), False)
    return pc.replace_with_mask(texts, mask, change_all(texts.filter(mask))) if mask.true_count else texts


def changeable(texts: pa.Array, lowercase: bool) -> np.ndarray:
    """Return for each row whether normalizing may change it.

    It is not ASCII, or has needless spaces, control characters or, where they are to go, capitals.
    """
    space, delete = ord(" "), 0x7F

    def is_odd(data: np.ndarray) -> np.ndarray:
        odd = (data < space) | (data >= delete)
        is_space = data == space
        odd[1:] |= is_space[1:] & is_space[:-1]
        if lowercase:
            odd |= (data >= ord("A")) & (data <= ord("Z"))
        return odd

    rows = rows_with(texts, is_odd)
    data, offsets = text_bytes(texts)
    if len(data):
        last = len(data) - 1  # empty rows look at a neighbour's byte, which does no harm
        rows |= (data[np.minimum(offsets[:-1], last)] == space) | (data[offsets[1:] - 1] == space)
    return rows


def rows_with(texts: pa.Array, predicate: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return for each row whether a predicate over bytes holds for one of its bytes."""
    data, offsets = text_bytes(texts)
    rows = np.zeros(len(texts), bool)
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(filled):
        rows[filled] = np.logical_or.reduceat(predicate(data), offsets[:-1][filled])
    return rows


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the UTF-8 bytes of all texts on end (uint8), and where each begins and the last ends (int64)."""
    buffers = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(buffers[1], np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    data = np.frombuffer(buffers[2] or b"", np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]
