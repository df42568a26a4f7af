"""Which script a text is written in: the share of its letters that belong to one."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is loaded)
from __future__ import annotations

import functools
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray.corpus.normalize import text_bytes
from tfray.errors import InputError

# Scripts in everyday use, by their Unicode names.
SCRIPTS = (
    "adlam arabic armenian balinese bengali bopomofo canadian_aboriginal chakma cham cherokee cyrillic devanagari "
    "ethiopic georgian greek gujarati gurmukhi han hangul hebrew hiragana javanese kannada katakana khmer lao latin "
    "malayalam meetei_mayek mongolian myanmar nko ol_chiki oriya sinhala sundanese syriac tamil telugu thaana thai "
    "tibetan tifinagh vai yi"
).split()
# Ways of writing that need several scripts (ISO 15924 calls these Jpan and Kore).
MIXED = {"japanese": ("han", "hiragana", "katakana"), "korean": ("hangul", "han")}


def check_script(name: str | None, setting: str) -> None:
    """Raise InputError unless a script is known (or none is asked for)."""
    if name is not None and name.lower() not in {*SCRIPTS, *MIXED}:
        raise InputError(f"{setting}={name!r} is no script that is known; use one of {', '.join([*MIXED, *SCRIPTS])}")


def script_shares(texts: pa.Array, script: str) -> np.ndarray:
    """Return for each text the share of its letters that belong to a script; 1 where it has no letters."""
    points, ends = code_points(pc.fill_null(texts, ""))
    letters = count(is_letter()[points], ends)
    return np.divide(
        count(in_script(script.lower())[points], ends), letters, out=np.ones(len(texts)), where=letters > 0
    )


def code_points(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points of all texts on end (uint32), and where each text's end; texts have no nulls."""
    data, _ = text_bytes(texts)
    points = np.frombuffer(data.tobytes().decode().encode("utf-32-le"), np.uint32)
    return points, np.cumsum(pc.utf8_length(texts).to_numpy(), dtype=np.int64)


def count(flags: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many flags are up in each of the pieces that end at `ends`."""
    total = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    return np.diff(total[ends], prepend=0)


@functools.cache
def is_letter() -> np.ndarray:
    """Return for every code point whether it is a letter."""
    return matching(r"\p{L}")


@functools.cache
def in_script(script: str) -> np.ndarray:
    """Return for every code point whether it is a letter of a script."""
    classes = [rf"\p{{{name.title()}}}" for name in MIXED.get(script, (script,))]
    return is_letter() & matching(f"[{''.join(classes)}]")


def matching(pattern: str) -> np.ndarray:
    """Return for every code point whether a regular expression of one character matches it."""
    points = [chr(point) if not 0xD800 <= point < 0xE000 else "" for point in range(sys.maxunicode + 1)]
    return pc.match_substring_regex(pa.array(points), pattern).to_numpy(zero_copy_only=False)
