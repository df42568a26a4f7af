"""The feed without Ray: the same steps for any number of workers and from any cursor."""

from __future__ import annotations

import math
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfray.batches.batch import Batch
from tfray.batches.feed import (
    Cursor,
    FeedOrderError,
    PoolLanes,
    count_pools,
    lane_batches,
    lane_schema,
    open_feed,
    read_feed,
)
from tfray.batches.mixing import Draw
from tfray.batches.plan import Pool, plan_pools
from tfray.batches.pool import mix_shards
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, read_columns
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

CONFIG = BatchesConfig(max_tokens=48, lanes=4, pool_examples=30)
MIXED = BatchesConfig(max_tokens=48, lanes=4, pool_examples=30, weights={"a": 0.7, "b": 1.6}, temperature=2.0)
EPOCHS = 2
CORPORA = "aababaa"
"""Of each shard."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Steps = dict[Cursor, list[list[Pair]]]
"""The pairs of each lane's micro-batch, for each step."""


class FakeRayData:
    """What open_feed asks of Ray Data, done at once: rows in, rows out, in order."""

    def from_items(self, numbers: list[int], **options: Any) -> FakeRayData:
        self.numbers, self.context = numbers, SimpleNamespace()
        return self

    def map_batches(self, stage: type, fn_constructor_args: tuple, batch_size: int, **options: Any) -> list[pa.Table]:
        assert batch_size == self.context.target_max_block_size == 1
        mapped = stage(*fn_constructor_args)
        lanes = pa.concat_tables([mapped(pa.table({"item": [number]})) for number in self.numbers])
        return [lanes.slice(row, 1) for row in range(len(lanes))]


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FakeRayData()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(data=data))
    monkeypatch.setitem(sys.modules, "ray.data", data)


@pytest.fixture(scope="module")
def corpus() -> list[list[Pair]]:
    """The pairs of each shard, all different."""
    random = np.random.default_rng(3)

    def ids(least: int) -> tuple[int, ...]:
        return tuple(random.integers(3, 1000, random.integers(least, 12)).tolist())

    return [[(ids(1), ids(0)) for _ in range(size)] for size in (7, 19, 1, 28, 12, 23, 5)]


@pytest.fixture(scope="module", params=[1000, 100_000], ids=["two bytes", "four bytes"])
def tokens(corpus: list[list[Pair]], tmp_path_factory: pytest.TempPathFactory, write_tokens, request) -> TokenFolder:
    folder = str(tmp_path_factory.mktemp("tokens"))
    return write_tokens(folder, list(zip(CORPORA, corpus, strict=True)), vocab_size=request.param)


def pairs_of(batch: Batch) -> list[Pair]:
    """Return a micro-batch's pairs as the corpus has them."""
    special = {PAD_ID, BOS_ID, EOS_ID}
    sides = [
        [tuple(t for t in row if t not in special) for row in ids.tolist()]
        for ids in (batch.source_ids, batch.label_ids)
    ]
    return list(zip(*sides, strict=True))


def read_all(
    tokens: TokenFolder,
    workers: int = 1,
    cursor: Cursor = Cursor(),  # noqa: B008
    config: BatchesConfig = CONFIG,
    epochs: int = EPOCHS,
) -> Steps:
    """Return all steps from a cursor on, put together from what each worker reads."""
    rows = open_feed(tokens, config, epochs, cursor)
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


@pytest.mark.parametrize("epochs", [2, 5])
def test_over_all_epochs_the_feed_holds_each_corpus_pairs_as_often_as_its_weight_says(
    tokens: TokenFolder, corpus: list[list[Pair]], epochs: int
):
    steps = read_all(tokens, config=MIXED, epochs=epochs)
    micro_batches = {(*cursor[:2], tuple(pairs)) for cursor, lanes in steps.items() for pairs in lanes}
    seen = Counter(pair for *_, pairs in micro_batches for pair in pairs)
    for portion, pairs in zip(mix_shards(tokens, MIXED), corpus, strict=True):
        assert portion.repeats != 1
        counts = [seen[pair] for pair in pairs]
        assert math.floor(portion.repeats * epochs) <= min(counts)
        assert max(counts) <= math.ceil(portion.repeats * epochs)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("workers", [2, 4])
def test_steps_do_not_depend_on_the_number_of_workers(tokens: TokenFolder, workers: int, config: BatchesConfig):
    alone, together = read_all(tokens, config=config), read_all(tokens, workers, config=config)
    assert list(alone) == list(together)
    assert alone == together


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixed"])
def test_resuming_from_any_cursor_with_any_number_of_workers_goes_on_as_if_never_stopped(
    tokens: TokenFolder, config: BatchesConfig
):
    whole = list(read_all(tokens, config=config).items())
    assert len({cursor[:2] for cursor, _ in whole}) > EPOCHS, "several pools an epoch are wanted here"
    for position, (cursor, _) in enumerate(whole):
        workers = (1, 2, 4)[position % 3]
        assert list(read_all(tokens, workers, cursor, config).items()) == whole[position:]


def test_after_a_step_comes_the_next_ones_cursor(tokens: TokenFolder):
    lanes = list(range(CONFIG.lanes))
    steps = list(read_feed(iter(open_feed(tokens, CONFIG, EPOCHS, Cursor())), lanes, Cursor()))
    assert [step.after for step in steps[:-1]] == [step.cursor for step in steps[1:]]
    assert steps[0].cursor == Cursor() and steps[-1].after == Cursor(EPOCHS, 0, 0)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["plain", "mixed"])
def test_a_pools_number_stands_for_the_same_place_in_whatever_order_they_are_asked_for(
    tokens: TokenFolder, config: BatchesConfig
):
    portions = mix_shards(tokens, config)
    places = [
        (epoch, pool, pool is pools[-1])
        for epoch in range(4)
        for pools in [plan_pools(portions, config, epoch)]
        for pool in pools
    ]
    for begun in range(len(places)):
        cursor = Cursor(places[begun][0], places[begun][1].index)
        assert count_pools(portions, config, 4, cursor) == len(places) - begun
        stage = PoolLanes(tokens, config, cursor)
        for number in np.random.default_rng(begun).permutation(len(places) - begun):
            assert stage.place(int(number)) == places[begun + number]


def test_after_the_last_epoch_there_are_no_pools(tokens: TokenFolder):
    assert count_pools(mix_shards(tokens, CONFIG), CONFIG, 2, Cursor(2)) == 0


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
    stage = PoolLanes(tokens, CONFIG, Cursor())
    pool = Pool(0, (Draw(1, 0, 19), Draw(4, 0, 12)))
    lanes = [pa.Table.from_batches([lane]) for lane in stage.lanes(0, pool, is_last=True)]
    ids = read_columns(tokens.paths("train")[0], ["source_ids"]).schema.field("source_ids").type.value_type
    assert [lane["lane"].to_pylist() for lane in lanes] == [[0], [1], [2], [3]]
    for lane in lanes:
        assert lane.schema.equals(lane_schema(ids))
        counts = lane["rows"][0].as_py()
        batches = list(lane_batches(lane))
        assert [len(source.offsets) - 1 for source, _ in batches] == counts
        assert [len(target.offsets) - 1 for _, target in batches] == counts
        sources = [ids for source, _ in batches for ids in np.split(source.values, source.offsets[1:-1])]
        assert [ids.tolist() for ids in sources] == lane["source_ids"][0].as_py()
