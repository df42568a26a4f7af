"""Duplicates: the same rows as a dict finds them, however units, partitions and workers divide the work."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfray.corpus.duplicates import Bitmap, find_duplicates, partition_of, write_keys

# Few values, so that they repeat, in the whole range, so that all partitions are met.
KEYS = st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1, 3 << 62]), st.sampled_from([0, 1, 2**64 - 1]))


def as_keys(keys: list[tuple[int, int]]) -> np.ndarray:
    return np.array(keys, np.uint64).reshape(-1, 2)


def random_keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64)


def slow(rows: list[tuple]) -> list[int]:
    """Return the rows that have one of their keys in common with an earlier row, by a set."""
    seen: set = set()
    found = []
    for ordinal, keys in enumerate(rows):
        kinds = set(enumerate(keys))
        if kinds & seen:
            found.append(ordinal)
        seen |= kinds
    return found


def find_all(
    folder: Path, kinds: list[np.ndarray], cuts: list[int], partitions: int, order: list[int] | None = None
) -> list[int]:
    """Return the duplicates of rows that are cut into units, by one call a partition."""
    edges = [0, *sorted(cuts), len(kinds[0])]
    paths = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        paths.append(str(folder / f"{number}.arrow"))
        write_keys(paths[-1], [keys[start:stop] for keys in kinds], np.arange(start, stop), partitions)
    if order:
        paths = [paths[index % len(paths)] for index in order if index < len(paths)]
    bitmap = Bitmap(len(kinds[0]))
    for partition in range(partitions):
        bitmap.add(find_duplicates(paths, partition))
    return np.flatnonzero(bitmap.test(np.arange(len(kinds[0])))).tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3).flatmap(lambda kinds: st.lists(st.tuples(*[KEYS] * kinds), min_size=1, max_size=30)),
    st.lists(st.integers(0, 30), max_size=3),
    st.sampled_from([1, 2, 4, 16]),
    st.permutations(range(4)),
)
def test_duplicates_are_those_of_a_set_whatever_the_units_and_partitions(
    tmp_path_factory: pytest.TempPathFactory, rows: list, cuts: list[int], partitions: int, order: list[int]
) -> None:
    kinds = [as_keys(list(keys)) for keys in zip(*rows, strict=True)]
    cuts = [min(cut, len(rows)) for cut in cuts]
    assert find_all(tmp_path_factory.mktemp("keys"), kinds, cuts, partitions, order) == slow(rows)


@pytest.mark.parametrize("units", [1, 2, 4])
@pytest.mark.parametrize("partitions", [1, 64, 1024])
def test_a_larger_corpus_has_the_same_duplicates_in_any_division(tmp_path: Path, units: int, partitions: int) -> None:
    keys = random_keys(5000)[np.random.default_rng(1).integers(0, 5000, 8000)]
    cuts = [8000 * unit // units for unit in range(1, units)]
    assert find_all(tmp_path, [keys], cuts, partitions) == slow([(tuple(key),) for key in keys.tolist()])


def test_equal_keys_of_different_kinds_are_no_duplicates(tmp_path: Path) -> None:
    keys = random_keys(3)
    assert find_all(tmp_path, [keys, keys[::-1]], [], 4) == []


def test_keys_that_agree_in_one_half_alone_are_different(tmp_path: Path) -> None:
    assert find_all(tmp_path, [as_keys([(1, 1), (1, 2), (2, 1), (1, 2)])], [], 2) == [3]


def test_one_partition_is_one_batch_and_holds_its_keys_alone(tmp_path: Path) -> None:
    keys, path = random_keys(1000), str(tmp_path / "keys.arrow")
    write_keys(path, [keys], np.arange(1000), 8)
    file = pa.ipc.open_file(path)
    assert file.num_record_batches == 8
    for partition in range(8):
        high = file.get_batch(partition)["high"].to_numpy()
        assert len(high) and set(partition_of(high, 8).tolist()) == {partition}


def test_no_rows_and_no_files_have_no_duplicates(tmp_path: Path) -> None:
    assert find_all(tmp_path, [as_keys([])], [0], 4) == []
    assert find_duplicates([], 0).tolist() == []


@pytest.mark.parametrize("partitions", [0, 3, 8192])
def test_partitions_are_a_power_of_two(tmp_path: Path, partitions: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        write_keys(str(tmp_path / "keys.arrow"), [as_keys([])], np.arange(0), partitions)


@pytest.mark.parametrize(("different", "most_bytes"), [(200_000, 48), (10, 96)])
def test_finding_duplicates_takes_the_memory_that_it_says(tmp_path: Path, different: int, most_bytes: int) -> None:
    count, path = 200_000, str(tmp_path / "keys.arrow")
    write_keys(path, [random_keys(different)[np.arange(count) % different]], np.arange(count), 1)
    tracemalloc.start()  # sees what NumPy holds; the keys as they are read are Arrow's, 24 bytes each
    assert len(find_duplicates([path], 0)) == count - different
    assert tracemalloc.get_traced_memory()[1] < (most_bytes - 24) * count + 100_000
    tracemalloc.stop()


@given(st.integers(1, 200).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1)))))
def test_a_bitmap_is_a_set_of_numbers(case: tuple[int, list[int]]) -> None:
    size, numbers = case
    bitmap = Bitmap(size)
    bitmap.add(np.array(numbers[::2], np.int64))
    bitmap.add(np.array(numbers[1::2], np.int64))
    copy = Bitmap(size, bitmap.to_bytes())
    assert copy.test(np.arange(size)).tolist() == [number in numbers for number in range(size)]
    assert len(copy) == len(set(numbers))
    assert len(copy.to_bytes()) == -(-size // 8)
