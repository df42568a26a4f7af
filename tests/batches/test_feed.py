"""The feed without Ray: the same steps for any number of workers and from any cursor."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfray.batches.batch import Batch
from tfray.batches.feed import LANE_SCHEMA, Cursor, FeedOrderError, PoolLanes, lane_batches, open_feed, read_feed
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, write_shard
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

CONFIG = BatchesConfig(max_tokens=48, lanes=4, pool_examples=30)
EPOCHS = 2

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Steps = dict[Cursor, list[list[Pair]]]
"""The pairs of each lane's micro-batch, for each step."""


class FakeRayData:
    """What open_feed asks of Ray Data, done at once: rows in, rows out, in order."""

    def from_items(self, places: list[dict], **options: Any) -> FakeRayData:
        self.places = places
        return self

    def map_batches(self, stage: type, fn_constructor_args: tuple, **options: Any) -> FakeRayData:
        mapped = stage(*fn_constructor_args)
        self.lanes = pa.concat_tables([mapped(pa.Table.from_pylist([place])) for place in self.places])
        return self

    def repartition(self, target_num_rows_per_block: int) -> list[pa.Table]:
        assert target_num_rows_per_block == 1
        return [self.lanes.slice(row, 1) for row in range(len(self.lanes))]


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FakeRayData()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=data))
    monkeypatch.setitem(sys.modules, "ray.data", data)


@pytest.fixture(scope="module")
def corpus() -> list[list[Pair]]:
    """The pairs of each shard, all different."""
    random = np.random.default_rng(3)
    sizes = [7, 19, 1, 28, 12, 23, 5]
    return [
        [tuple(tuple(random.integers(3, 1000, random.integers(0, 12)).tolist()) for _ in "st") for _ in range(size)]  # type: ignore[misc]
        for size in sizes
    ]


@pytest.fixture(scope="module")
def tokens(corpus: list[list[Pair]], tmp_path_factory: pytest.TempPathFactory) -> TokenFolder:
    folder: Path = tmp_path_factory.mktemp("tokens")
    for index, pairs in enumerate(corpus):
        sides = [[list(ids) for ids in side] for side in zip(*pairs, strict=True)]
        write_shard(f"{folder}/train/{index}.parquet", *sides, rows=list(range(len(pairs))), summary={})
    shards = {f"{index}.parquet": len(pairs) for index, pairs in enumerate(corpus)}
    return TokenFolder(str(folder), {"shards": {"train": shards}})


def pairs_of(batch: Batch) -> list[Pair]:
    """Return a micro-batch's pairs as the corpus has them."""
    special = {PAD_ID, BOS_ID, EOS_ID}
    sides = [
        [tuple(t for t in row if t not in special) for row in ids.tolist()]
        for ids in (batch.source_ids, batch.label_ids)
    ]
    return list(zip(*sides, strict=True))


def read_all(tokens: TokenFolder, workers: int = 1, cursor: Cursor = Cursor()) -> Steps:  # noqa: B008
    """Return all steps from a cursor on, put together from what each worker reads."""
    rows = open_feed(tokens, CONFIG, EPOCHS, cursor)
    steps: Steps = {}
    for worker in range(workers):
        lanes = list(range(worker, CONFIG.lanes, workers))
        for step in read_feed(iter(rows[worker::workers]), lanes, cursor):
            grid = steps.setdefault(step.cursor, [[]] * CONFIG.lanes)
            for lane, batch in zip(lanes, step.micro_batches, strict=True):
                grid[lane] = pairs_of(batch)
    return steps


def test_the_feed_holds_every_pair_in_every_epoch(tokens: TokenFolder, corpus: list[list[Pair]]):
    expected = Counter(pair for shard in corpus for pair in shard)
    steps = read_all(tokens)
    for epoch in range(EPOCHS):
        micro_batches = {
            (cursor.pool, tuple(pairs)) for cursor, lanes in steps.items() if cursor.epoch == epoch for pairs in lanes
        }
        assert Counter(pair for _, pairs in micro_batches for pair in pairs) == expected


@pytest.mark.parametrize("workers", [2, 4])
def test_steps_do_not_depend_on_the_number_of_workers(tokens: TokenFolder, workers: int):
    alone, together = read_all(tokens), read_all(tokens, workers)
    assert list(alone) == list(together)
    assert alone == together


def test_resuming_from_any_cursor_with_any_number_of_workers_goes_on_as_if_never_stopped(tokens: TokenFolder):
    whole = list(read_all(tokens).items())
    assert len({cursor[:2] for cursor, _ in whole}) > EPOCHS, "several pools an epoch are wanted here"
    for position, (cursor, _) in enumerate(whole):
        workers = (1, 2, 4)[position % 3]
        assert list(read_all(tokens, workers, cursor).items()) == whole[position:]


def test_after_a_step_comes_the_next_ones_cursor(tokens: TokenFolder):
    lanes = list(range(CONFIG.lanes))
    steps = list(read_feed(iter(open_feed(tokens, CONFIG, EPOCHS, Cursor())), lanes, Cursor()))
    assert [step.after for step in steps[:-1]] == [step.cursor for step in steps[1:]]
    assert steps[0].cursor == Cursor() and steps[-1].after == Cursor(EPOCHS, 0, 0)


def test_epochs_differ_in_their_order(tokens: TokenFolder):
    first, second = ([lanes for cursor, lanes in read_all(tokens).items() if cursor.epoch == e] for e in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    "disturb",
    [
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: rows[1:],
        lambda rows: [*rows[:4], *rows[8:]],
        lambda rows: [rows[0], *rows],
        lambda rows: rows[:-1],
    ],
    ids=["swapped", "missing", "a pool missing", "twice", "cut short"],
)
def test_a_row_out_of_order_is_refused(tokens: TokenFolder, disturb: Any):
    rows = disturb(open_feed(tokens, CONFIG, 1, Cursor()))
    with pytest.raises(FeedOrderError, match=r"expected \(epoch, pool, lane\)"):
        list(read_feed(iter(rows), list(range(CONFIG.lanes)), Cursor()))


def test_another_workers_rows_are_refused(tokens: TokenFolder):
    rows = open_feed(tokens, CONFIG, 1, Cursor())
    with pytest.raises(FeedOrderError):
        list(read_feed(iter(rows[1::2]), [0, 2], Cursor()))


def test_a_feed_opened_elsewhere_than_the_cursor_is_refused(tokens: TokenFolder):
    rows = open_feed(tokens, CONFIG, EPOCHS, Cursor())
    with pytest.raises(FeedOrderError):
        next(read_feed(iter(rows), [0, 1, 2, 3], Cursor(epoch=1)))


def test_a_lane_row_holds_its_micro_batches_one_after_the_other(tokens: TokenFolder):
    stage = PoolLanes(tokens, CONFIG)
    place = {"epoch": 0, "pool": 0, "shards": [1, 4], "is_last": True}
    lanes = [pa.Table.from_batches([lane]) for lane in stage.lanes(place)]
    assert [lane["lane"].to_pylist() for lane in lanes] == [[0], [1], [2], [3]]
    for lane in lanes:
        assert lane.schema.equals(LANE_SCHEMA)
        counts = lane["rows"][0].as_py()
        batches = list(lane_batches(lane))
        assert [len(source.offsets) - 1 for source, _ in batches] == counts
        assert [len(target.offsets) - 1 for _, target in batches] == counts
        sources = [ids for source, _ in batches for ids in np.split(source.values, source.offsets[1:-1])]
        assert [ids.tolist() for ids in sources] == lane["source_ids"][0].as_py()
