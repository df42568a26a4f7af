"""Texts -> 128-bit hashes, and what follows from a hash alone: its split, its place in a sample.

XXH3 gives the same on every machine and in every version. It is no secret-keeping hash: the salt
makes choices independent of each other, not unpredictable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_digest

TRAIN, VALID, TEST = range(3)  # as in config.SPLITS


def hash_texts(texts: pa.Array, salt: bytes = b"") -> np.ndarray:
    """Return the hash of each text, (n, 2) uint64; null has the hash of an empty text."""
    return hash_bytes((text or b"" for text in texts.cast(pa.binary()).to_pylist()), salt)


def hash_pairs(source: pa.Array, target: pa.Array, salt: bytes = b"") -> np.ndarray:
    """Return the hash of each pair of texts, (n, 2) uint64."""
    return join_hashes(hash_texts(source), hash_texts(target), salt)


def join_hashes(first: np.ndarray, second: np.ndarray, salt: bytes = b"") -> np.ndarray:
    """Return hashes of pairs of hashes, (n, 2) uint64."""
    return hash_rows(np.hstack([first, second]), salt)


def hash_rows(rows: np.ndarray, salt: bytes = b"") -> np.ndarray:
    """Return the hash of each row of a matrix, (n, 2) uint64."""
    width = rows.shape[1] * rows.itemsize
    data = rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes()
    return hash_bytes((data[start : start + width] for start in range(0, len(data), width)), salt)


def hash_bytes(values: Iterable[bytes], salt: bytes) -> np.ndarray:
    """Return the hash of each value, (n, 2) uint64."""
    seed = int.from_bytes(hashlib.blake2b(salt, digest_size=8).digest(), "little") if salt else 0
    digests = b"".join([xxh3_128_digest(value, seed) for value in values])
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def split_of(hashes: np.ndarray, valid_share: float, test_share: float) -> np.ndarray:
    """Return the split of each hash: 0 is train, 1 valid, 2 test (uint8)."""
    bounds = np.array([valid_share, valid_share + test_share]) * 2.0**64
    place = hashes[:, 0].astype(np.float64)
    return np.select([place < bounds[0], place < bounds[1]], [VALID, TEST], TRAIN).astype(np.uint8)


def priority(hashes: np.ndarray) -> np.ndarray:
    """Return a number for each hash (uint64); a sample is the k rows with the smallest ones.

    The other half of the hash tells the split, so that a sample of a split is a fair one.
    """
    return hashes[:, 1]


def mix(key: np.ndarray | np.uint64, counter: np.ndarray | np.uint64) -> np.ndarray:
    """Return 64 random bits for each key and counter (SplitMix64, Steele et al. 2014); the same on every machine, and
    for one counter no two keys have the same."""
    with np.errstate(over="ignore"):
        bits = np.asarray(key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))
