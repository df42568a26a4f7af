"""Which rows occurred before, over all files and workers, in bounded memory.

    unit -> keys of its rows, sorted into partitions by their top bits    write_keys    one file a unit
    partition of all files -> the rows that occurred before               find_duplicates
    these rows -> one bit a row                                           Bitmap

A row is known by its ordinal, its number over all files in the order of the inputs, so that the first
of several equal rows is the same one however the work is divided.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tfray import storage

MOST_PARTITIONS = 4096
KEY_SCHEMA = pa.schema({"high": pa.uint64(), "low": pa.uint64(), "ordinal": pa.int64()})
KIND_STEP = 0x9E3779B97F4A7C15  # odd, so that no two of 256 kinds have the same multiple


def write_keys(path: str, kinds: list[np.ndarray], ordinals: np.ndarray, partitions: int) -> None:
    """Write the keys of a unit's rows: an Arrow file with one batch a partition, 24 bytes a key.

    (To find one batch of 4,096 takes 0.3 ms; to find one row group of a Parquet file with as many, 7 ms.)

    Each kind of key is one array (n, 2) uint64, in the order of the ordinals (int64): hashes of the
    source, hashes of the target, bands of near-duplicates ... Equal keys of different kinds are no
    duplicates. All files of a job need the same kinds and the same partitions, a power of two.
    """
    if partitions & (partitions - 1) or not 1 <= partitions <= MOST_PARTITIONS:
        raise ValueError(f"partitions={partitions} must be a power of two from 1 to {MOST_PARTITIONS}")
    high = np.concatenate([keys[:, 0] for keys in kinds])
    low = np.concatenate([keys[:, 1] + np.uint64(kind * KIND_STEP % 2**64) for kind, keys in enumerate(kinds)])
    parts = partition_of(high, partitions)
    order = np.argsort(parts, kind="stable")  # of uint16: a radix sort
    batch = pa.record_batch([high[order], low[order], np.tile(ordinals, len(kinds))[order]], schema=KEY_SCHEMA)
    ends = np.cumsum(np.bincount(parts, minlength=partitions)).tolist()
    with storage.publish(path) as file, pa.ipc.new_file(file, KEY_SCHEMA) as writer:
        for start, end in zip([0, *ends], ends, strict=False):
            writer.write_batch(batch.slice(start, end - start))


def partition_of(high: np.ndarray, partitions: int) -> np.ndarray:
    """Return the partition of each key, by the top bits of its first half (uint16)."""
    return ((high >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.uint16)


def find_duplicates(paths: list[str], partition: int) -> np.ndarray:
    """Return the ordinals (int64, sorted) that have a key in a partition which a smaller ordinal has, too.

    Holds at most 48 bytes a key of the partition, or 48 MB per million keys; 96 where nearly all are repeated.
    """
    high, low, ordinals = read_partition(paths, partition)
    order = np.argsort(high)
    sorted_high = high[order]
    is_repeat = sorted_high[1:] == sorted_high[:-1]
    is_shared = np.zeros(len(order), bool)
    is_shared[1:] |= is_repeat
    is_shared[:-1] |= is_repeat
    shared = order[is_shared]  # few keys, mostly: those that agree in their first half with another one
    del order, sorted_high
    high, low, ordinals = high[shared], low[shared], ordinals[shared]
    order = np.lexsort((ordinals, low, high))
    high, low, ordinals = high[order], low[order], ordinals[order]
    repeats = (high[1:] == high[:-1]) & (low[1:] == low[:-1]) & (ordinals[1:] != ordinals[:-1])
    return np.unique(ordinals[1:][repeats])


def read_partition(paths: list[str], partition: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one partition's keys from all files: their two halves and ordinals."""
    batches = []
    for path in paths:
        with storage.open_input(path) as file:
            batches.append(pa.ipc.open_file(file).get_batch(partition))
    table = pa.Table.from_batches(batches, KEY_SCHEMA)
    return tuple(table[name].to_numpy() for name in KEY_SCHEMA.names)  # type: ignore[return-value]


class Bitmap:
    """A set of ordinals below a size: one bit each, 0.125 MB per million."""

    def __init__(self, size: int, data: bytes | None = None) -> None:
        self.size = size
        self.bytes = np.zeros(-(-size // 8), np.uint8) if data is None else np.frombuffer(data, np.uint8).copy()

    def add(self, ordinals: np.ndarray) -> None:
        """Put ordinals in."""
        np.bitwise_or.at(self.bytes, ordinals >> 3, np.left_shift(1, ordinals & 7).astype(np.uint8))

    def test(self, ordinals: np.ndarray) -> np.ndarray:
        """Return for each ordinal whether it is in."""
        return (self.bytes[ordinals >> 3] >> (ordinals & 7).astype(np.uint8) & 1).astype(bool)

    def __len__(self) -> int:
        """Return how many are in."""
        return int(np.unpackbits(self.bytes).sum())

    def to_bytes(self) -> bytes:
        """Return what `Bitmap(size, data)` makes the same set of."""
        return self.bytes.tobytes()
