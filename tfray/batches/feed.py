"""The plan through Ray Data: one ordered stream of steps for each worker.

One row of the data set is one lane of one pool, with all its micro-batches as ragged lists. With
blocks of one row and `preserve_order`, `streaming_split(equal=True)` hands rows out in turn, so
that worker w of W gets lanes w, w + W, ... of every pool. Ray documents no such guarantee: each row
carries its place, and the worker raises FeedOrderError when it is not the one that it expects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tfray.batches.batch import Batch, Ragged, collate
from tfray.batches.mixing import Draw
from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths, row_widths
from tfray.batches.plan import Pool, plan_pool, plan_pools
from tfray.batches.pool import PoolReader, mix_shards, ragged
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder


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


def lane_schema(ids: pa.DataType) -> pa.Schema:
    """Return the columns of a lane row; ids take as many bytes as in the shards."""
    return pa.schema(
        {
            "epoch": pa.int64(),
            "pool": pa.int64(),
            "lane": pa.int64(),
            "is_last_pool": pa.bool_(),
            "rows": pa.list_(pa.int64()),  # of each micro-batch
            "widths": pa.list_(pa.int64()),  # of packed rows; else none
            "source_ids": pa.list_(pa.list_(ids)),  # of all micro-batches, one after the other
            "target_ids": pa.list_(pa.list_(ids)),
        }
    )


def open_feed(tokens: TokenFolder, config: BatchesConfig, epochs: int, cursor: Cursor):
    """Return a Ray Dataset of lane rows, in order, from the cursor's pool on."""
    import ray.data

    portions = mix_shards(tokens, config)
    places = [
        place_of(epoch, pool, is_last=pool is pools[-1])
        for epoch in range(cursor.epoch, epochs)
        for pools in [plan_pools(portions, config, epoch)]
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


def place_of(epoch: int, pool: Pool, is_last: bool) -> dict:
    """Return a pool and its epoch as a row of flat lists, since Ray makes tensors of nested ones."""
    shards, starts, stops = (list(column) for column in zip(*pool.draws, strict=True))
    return {
        "epoch": epoch,
        "pool": pool.index,
        "shards": shards,
        "starts": starts,
        "stops": stops,
        "is_last": is_last,
    }


class PoolLanes:
    """Ray Data stage: a pool's place -> one row for each lane."""

    def __init__(self, tokens: TokenFolder, config: BatchesConfig) -> None:
        self.reader, self.config = PoolReader(tokens, config), config

    def __call__(self, places: pa.Table) -> pa.Table:
        lanes = [lane for place in places.to_pylist() for lane in self.lanes(place)]
        return pa.Table.from_batches(lanes)

    def lanes(self, place: dict) -> Iterator[pa.RecordBatch]:
        """Yield a pool's lanes as batches of one row."""
        draws = map(Draw, place["shards"], place["starts"], place["stops"])
        pool = Pool(place["pool"], tuple(draws))
        pairs = self.reader.read(pool, place["epoch"])
        widths = row_widths(*pairs.lengths, self.config.max_tokens) if self.config.packing else ()
        steps = plan_pool(*pairs.lengths, self.config, place["epoch"], pool.index)
        schema = lane_schema(pa.from_numpy_dtype(pairs.source.values.dtype))
        for lane in range(self.config.lanes):
            micro_batches = [step[lane] for step in steps]
            rows = np.concatenate(micro_batches)
            columns = [
                pa.array([place["epoch"]]),
                pa.array([pool.index]),
                pa.array([lane]),
                pa.array([place["is_last"]]),
                one_list(pa.array([len(rows) for rows in micro_batches], pa.int64())),
                one_list(pa.array(widths, pa.int64())),
                one_list(lists(pairs.source.take(rows))),
                one_list(lists(pairs.target.take(rows))),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def lists(rows: Ragged) -> pa.ListArray:
    """Return rows as an array of lists."""
    return pa.ListArray.from_arrays(pa.array(rows.offsets, pa.int32()), pa.array(rows.values))


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
        widths = lane_rows[0]["widths"][0].as_py()
        lay_out = partial(collate_packed, widths=Widths(*widths)) if widths else collate
        is_last = lane_rows[0]["is_last_pool"][0].as_py()
        next_pool = (pool[0] + 1, 0) if is_last else (pool[0], pool[1] + 1)
        for number, micro_batches in enumerate(steps):
            if number < skip:
                continue
            after = Cursor(*pool, number + 1) if number + 1 < count else Cursor(*next_pool, 0)
            yield FeedStep(Cursor(*pool, number), after, [lay_out(*pair) for pair in micro_batches])
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
