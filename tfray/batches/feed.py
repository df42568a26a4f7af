"""The plan through Ray Data: one ordered stream of steps for each worker.

One row of the data set is one lane of one pool, with all its micro-batches as ragged lists. With
blocks of one row and `preserve_order`, `streaming_split(equal=True)` hands rows out in turn, so
that worker w of W gets lanes w, w + W, ... of every pool. Ray documents no such guarantee: each row
carries its place, and the worker raises FeedOrderError when it is not the one that it expects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray.batches.batch import Batch, Ragged, collate
from tfray.batches.plan import Pool, plan_pool, plan_pools
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, read_pairs


class FeedOrderError(RuntimeError):
    """Ray Data handed out another row than the plan has next."""


class Cursor(NamedTuple):
    """A place in the data order: the next step to train on."""

    epoch: int = 0
    pool: int = 0
    step: int = 0
    """Step within the pool."""


class FeedStep(NamedTuple):
    """One worker's share of a step."""

    cursor: Cursor
    after: Cursor
    """Where to go on once the step is done."""
    micro_batches: list[Batch]


LANE_SCHEMA = pa.schema(
    {
        "epoch": pa.int64(),
        "pool": pa.int64(),
        "lane": pa.int64(),
        "is_last_pool": pa.bool_(),
        "rows": pa.list_(pa.int64()),  # of each micro-batch
        "source_ids": pa.list_(pa.list_(pa.int32())),  # of all micro-batches, one after the other
        "target_ids": pa.list_(pa.list_(pa.int32())),
    }
)


def open_feed(tokens: TokenFolder, config: BatchesConfig, epochs: int, cursor: Cursor):
    """Return a Ray Dataset of lane rows, in order, from the cursor's pool on."""
    import ray.data

    examples = tokens.examples("train")
    places = [
        {"epoch": epoch, "pool": pool.index, "shards": list(pool.shards), "is_last": pool is pools[-1]}
        for epoch in range(cursor.epoch, epochs)
        for pools in [plan_pools(examples, config, epoch)]
        for pool in pools
        if (epoch, pool.index) >= (cursor.epoch, cursor.pool)
    ]
    if not places:  # training ended, but was killed before it said so: nobody reads what is handed out
        return ray.data.range(config.lanes)
    dataset = ray.data.from_items(places, override_num_blocks=len(places))
    lanes = dataset.map_batches(
        PoolLanes,
        fn_constructor_args=(tokens, config),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.25,
        concurrency=1,
    )
    return lanes.repartition(target_num_rows_per_block=1)


class PoolLanes:
    """Ray Data stage: a pool's place -> one row for each lane."""

    def __init__(self, tokens: TokenFolder, config: BatchesConfig) -> None:
        self.shards, self.config = tokens.shards("train"), config

    def __call__(self, places: pa.Table) -> pa.Table:
        lanes = [lane for place in places.to_pylist() for lane in self.lanes(place)]
        return pa.Table.from_batches(lanes)

    def lanes(self, place: dict) -> Iterator[pa.RecordBatch]:
        """Yield a pool's lanes as batches of one row."""
        pool = Pool(place["pool"], tuple(place["shards"]))
        table = read_pairs([self.shards[shard] for shard in pool.shards])
        lengths = [table[f"{side}_length"].to_numpy() for side in ("source", "target")]
        steps = plan_pool(lengths[0], lengths[1], self.config, place["epoch"], pool.index)
        for lane in range(self.config.lanes):
            micro_batches = [step[lane] for step in steps]
            chosen = table.take(pa.array(np.concatenate(micro_batches)))
            columns = [
                pa.array([place["epoch"]]),
                pa.array([pool.index]),
                pa.array([lane]),
                pa.array([place["is_last"]]),
                one_list(pa.array([len(rows) for rows in micro_batches], pa.int64())),
                one_list(chosen["source_ids"].combine_chunks()),
                one_list(chosen["target_ids"].combine_chunks()),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=LANE_SCHEMA)


def one_list(values: pa.Array) -> pa.ListArray:
    """Return an array of one list that holds all values."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def read_feed(rows: Iterator[pa.Table], lanes: list[int], cursor: Cursor) -> Iterator[FeedStep]:
    """Yield one worker's share of each step from the cursor on, given its lane rows in order.

    Raises FeedOrderError when a row is not the lane that the plan has next.
    """
    pool = (cursor.epoch, cursor.pool)
    skip = cursor.step
    while True:
        lane_rows = list(itertools.islice(rows, len(lanes)))
        if not lane_rows:
            return
        for row, lane in itertools.zip_longest(lane_rows, lanes):
            check_order(row, (pool[0], pool[1], lane))
        steps = zip(*(lane_batches(row) for row in lane_rows), strict=True)
        count = len(lane_rows[0]["rows"][0])
        is_last = lane_rows[0]["is_last_pool"][0].as_py()
        next_pool = (pool[0] + 1, 0) if is_last else (pool[0], pool[1] + 1)
        for number, micro_batches in enumerate(steps):
            if number < skip:
                continue
            after = Cursor(*pool, number + 1) if number + 1 < count else Cursor(*next_pool, 0)
            yield FeedStep(Cursor(*pool, number), after, [collate(*pair) for pair in micro_batches])
        pool, skip = next_pool, 0


def check_order(row: pa.Table | None, expected: tuple[int, int, int]) -> None:
    """Raise FeedOrderError unless a row is (epoch, pool, lane) as expected; None is a row that never came."""
    found = None if row is None else tuple(row[name][0].as_py() for name in ("epoch", "pool", "lane"))
    if found != expected:
        raise FeedOrderError(f"expected (epoch, pool, lane) {expected} next, got {found}")


def lane_batches(row: pa.Table) -> Iterator[tuple[Ragged, Ragged]]:
    """Yield the source and target rows of a lane's micro-batches."""
    counts = row["rows"].combine_chunks().flatten().to_numpy()
    sides = [ragged(row[name].combine_chunks().flatten()) for name in ("source_ids", "target_ids")]
    stops = np.cumsum(counts)
    for start, stop in zip(stops - counts, stops, strict=True):
        rows = np.arange(start, stop)
        source, target = (side.take(rows) for side in sides)
        yield source, target


def ragged(lists: pa.ListArray) -> Ragged:
    """Return an array of lists as one buffer with offsets."""
    lengths = pc.list_value_length(lists).to_numpy()  # type: ignore[attr-defined]
    return Ragged(lists.flatten().to_numpy(), np.concatenate([[0], np.cumsum(lengths)]))
