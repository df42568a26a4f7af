"""Keys that texts share where they are nearly the same: MinHash of 5-character shingles, cut into bands.

Two texts with Jaccard similarity s of their shingles have s of their signature in common, about, and so
share a band of r numbers with probability s^r, and one of b bands with 1 - (1 - s^r)^b: a step near the
threshold (Leskovec et al., Mining of Massive Datasets, chapter 3). datasketch gives b, r and the hash
functions; here they are applied to many texts at once.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is loaded)
from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray.corpus.hashing import hash_rows, mix
from tfray.corpus.scripts import code_points
from tfray.errors import InputError

SHINGLE = 5  # characters
SIGNATURE = 128  # numbers
TEXTS_AT_ONCE = 1000  # so that their shingles stay in the processor's cache
HIGHEST_THRESHOLD = 0.95  # above, there would be one band, which even texts at the threshold seldom share


def near_keys(texts: pa.Array, threshold: float) -> list[np.ndarray]:
    """Return a key of each text for each band, (n, 2) uint64; texts that share one are near-duplicates."""
    bands, rows = choose_bands(threshold)
    parts = [signatures(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
    signature = np.concatenate([np.zeros((0, SIGNATURE), np.uint32), *parts])
    return [hash_rows(signature[:, band * rows : (band + 1) * rows]) for band in range(bands)]


@functools.cache
def choose_bands(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many numbers divide best at a similarity."""
    index = load_datasketch().MinHashLSH(threshold=min(threshold, HIGHEST_THRESHOLD), num_perm=SIGNATURE)
    return index.b, index.r


@functools.cache
def permutations() -> np.ndarray:
    """Return factors and summands of the signature's hash functions, (2, SIGNATURE) uint32."""
    return load_datasketch().MinHash(num_perm=SIGNATURE, seed=1, scheme="affine32").permutations


def load_datasketch() -> ModuleType:
    """Return the library; raises InputError saying how to install it."""
    try:
        import datasketch
    except ImportError as error:
        raise InputError(
            "corpus.clean.near_duplicates needs datasketch, which is not installed; pip install 'tfray[dedup]'"
        ) from error
    return datasketch


def signatures(texts: pa.Array) -> np.ndarray:
    """Return each text's MinHash signature, (n, SIGNATURE) uint32."""
    found = np.empty((SIGNATURE, len(texts)), np.uint32)
    hashes, starts = shingle_hashes(texts)
    for row, (factor, summand) in enumerate(permutations().T):
        found[row] = np.minimum.reduceat(hashes * factor + summand, starts)
    return found.T


def shingle_hashes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each shingle (uint32), and where each text's begin.

    A text that is shorter than a shingle is one, filled up with zeros.
    """
    points, ends = code_points(pc.fill_null(texts, ""))
    lengths = np.diff(ends, prepend=0)
    counts = np.maximum(lengths - SHINGLE + 1, 1)
    starts = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) + np.repeat(ends - lengths - starts, counts)
    last = np.repeat(ends, counts)
    points = np.append(points, np.zeros(SHINGLE, np.uint32)).astype(np.uint64)
    hashes = np.zeros(len(places), np.uint64)
    for step in range(SHINGLE):
        inside = places + step < last
        hashes = mix(hashes + np.where(inside, points[places + step], 0), np.uint64(0))
    return (hashes >> np.uint64(32)).astype(np.uint32), starts
