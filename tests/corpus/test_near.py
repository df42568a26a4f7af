"""Near-duplicates: texts that are nearly equal share a key nearly always, others nearly never."""

from __future__ import annotations

import random
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.corpus.near import SIGNATURE, TEXTS_AT_ONCE, choose_bands, near_keys, shingle_hashes, signatures
from tfray.errors import InputError

pytest.importorskip("datasketch")
WORDS = [f"{first}{middle}{last}" for first in "bdfgklmn" for middle in ("ai", "o", "eu") for last in ("r", "st", "ng")]


def sentences(count: int, seed: int = 0) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=20)) for _ in range(count)]


def as_array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.string())


def share_a_key(first: list[str], second: list[str], threshold: float) -> np.ndarray:
    """Return which texts share a key with the one at the same place."""
    bands = zip(near_keys(as_array(first), threshold), near_keys(as_array(second), threshold), strict=True)
    return np.any([np.all(one == other, axis=1) for one, other in bands], axis=0)


def shingles(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


@given(st.lists(st.text(st.sampled_from("abcä好"), max_size=9), max_size=5))
def test_shingles_are_all_runs_of_five_characters_or_a_shorter_text(texts: list[str]) -> None:
    hashes, starts = shingle_hashes(as_array(texts))
    names: dict[str, int] = {}
    for text, start in zip(texts, starts, strict=True):
        for offset in range(max(1, len(text) - 4)):
            found = int(hashes[start + offset])
            assert names.setdefault(text[offset : offset + 5], found) == found
    assert len(set(names.values())) == len(names)


def test_equal_signatures_are_as_frequent_as_common_shingles() -> None:
    texts = sentences(300)
    changed = [f"{text[:60]} {other[60:]}" for text, other in zip(texts, sentences(300, 1), strict=True)]
    common = [
        len(shingles(text) & shingles(other)) / len(shingles(text) | shingles(other))
        for text, other in zip(texts, changed, strict=True)
    ]
    equal = np.mean(signatures(as_array(texts)) == signatures(as_array(changed)), axis=1)
    assert np.mean(equal) == pytest.approx(np.mean(common), abs=0.01)
    assert np.std(equal - common) < 0.06  # 0.044 is the binomial deviation of 128 numbers


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_nearly_equal_texts_share_a_key_and_different_ones_do_not(threshold: float) -> None:
    texts = sentences(500)
    assert share_a_key(texts, texts, threshold).all()
    assert np.mean(share_a_key(texts, [f"{text}!" for text in texts], threshold)) > 0.99
    assert np.mean(share_a_key(texts, sentences(500, seed=1), threshold)) < 0.01


def test_fewer_texts_are_alike_the_higher_the_threshold() -> None:
    texts = sentences(500)
    changed = [f"{text[:80]} {other[80:]}" for text, other in zip(texts, sentences(500, 1), strict=True)]
    shares = [np.mean(share_a_key(texts, changed, threshold)) for threshold in (0.2, 0.5, 0.8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.99 and shares[-1] < 0.1


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.8, 0.95, 0.999])
def test_every_threshold_has_bands_that_fit_the_signature(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands >= 2 and bands * rows <= SIGNATURE
    keys = near_keys(as_array(["a", "", "b"]), threshold)
    assert len(keys) == bands and all(band.shape == (3, 2) and band.dtype == np.uint64 for band in keys)


def test_keys_do_not_depend_on_the_texts_beside() -> None:
    texts = sentences(TEXTS_AT_ONCE + 50)
    whole = near_keys(as_array(texts), 0.8)
    parts = [near_keys(as_array(texts[start : start + 333]), 0.8) for start in range(0, len(texts), 333)]
    assert all(np.array_equal(band, np.concatenate(pieces)) for band, *pieces in zip(whole, *parts, strict=True))


def test_no_texts_have_no_keys() -> None:
    assert all(len(band) == 0 for band in near_keys(as_array([]), 0.8))


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(InputError, match=r"pip install 'tfray\[dedup\]'"):
        choose_bands.__wrapped__(0.8)
