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

from tfray.batches.batch import Batch, collate
from tfray.batches.mixing import Portion
from tfray.batches.order import Cursor
from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths, row_widths
from tfray.batches.plan import Pool, plan_pool, plan_pools
from tfray.batches.pool import PoolReader, mix_shards, ragged
from tfray.config import BatchesConfig
from tfray.tokens.ragged import Ragged
from tfray.tokens.shards import TokenFolder

MOST_BLOCKS = 1000
"""Ray keeps some kilobytes for each block that goes in."""


class FeedOrderError(RuntimeError):
    """Ray Data handed out another row than the plan has next."""


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
    """Return a Ray Dataset of lane rows, in order, from the cursor's pool on.

    What goes in is a number for each pool, so nothing here grows with the corpus but 8 bytes a pool.
    """
    import ray.data

    pools = count_pools(mix_shards(tokens, config), config, epochs, cursor)
    if not pools:  # training ended, but was killed before it said so: nobody reads what is handed out
        return ray.data.range(config.lanes)
    dataset = ray.data.from_items(list(range(pools)), override_num_blocks=min(pools, MOST_BLOCKS))
    # A row more makes a block of its own. (A repartition would be a stage more, which takes whole cores.)
    dataset.context.target_max_block_size = 1
    return dataset.map_batches(
        PoolLanes,
        fn_constructor_args=(tokens, config, cursor),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,  # elastic workers may take every core, and wait for what this makes
        concurrency=1,
    )


def split_feed(dataset, workers: int) -> list:
    """Return one iterator over lane rows for each worker; one alone needs nobody who hands them out."""
    dataset.context.execution_options.preserve_order = True
    return [dataset.iterator()] if workers == 1 else dataset.streaming_split(workers, equal=True)


def read_rows(share, ahead: int) -> Iterator[pa.Table]:
    """Yield the rows of one worker's share, so many fetched ahead."""
    return iter(share.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=ahead))


def count_pools(portions: list[Portion], config: BatchesConfig, epochs: int, cursor: Cursor) -> int:
    """Return how many pools there are from the cursor's on."""
    counts = (len(plan_pools(portions, config, epoch)) for epoch in range(cursor.epoch, epochs))
    return max(0, sum(counts) - cursor.pool)


class PoolLanes:
    """Ray Data stage: the number of a pool, counted from the cursor's -> one row for each lane."""

    def __init__(self, tokens: TokenFolder, config: BatchesConfig, cursor: Cursor) -> None:
        self.reader, self.config, self.cursor = PoolReader(tokens, config), config, cursor
        self.seek(cursor.epoch, -cursor.pool)

    def __call__(self, rows: pa.Table) -> pa.Table:
        lanes = [lane for number in rows["item"].to_pylist() for lane in self.lanes(*self.place(number))]
        return pa.Table.from_batches(lanes)

    def seek(self, epoch: int, first: int) -> None:
        """Plan an epoch whose first pool has this number."""
        self.epoch, self.first = epoch, first
        self.pools = plan_pools(self.reader.portions, self.config, epoch)

    def place(self, number: int) -> tuple[int, Pool, bool]:
        """Return the epoch and the pool that a number stands for, and whether it is the epoch's last."""
        if number < self.first:  # Ray does something again that was lost
            self.seek(self.cursor.epoch, -self.cursor.pool)
        while number >= self.first + len(self.pools):
            self.seek(self.epoch + 1, self.first + len(self.pools))
        index = number - self.first
        return self.epoch, self.pools[index], index == len(self.pools) - 1

    def lanes(self, epoch: int, pool: Pool, is_last: bool) -> Iterator[pa.RecordBatch]:
        """Yield a pool's lanes as batches of one row."""
        pairs = self.reader.read(pool, epoch)
        widths = row_widths(*pairs.lengths, self.config.max_tokens) if self.config.packing else ()
        steps = plan_pool(*pairs.lengths, self.config, epoch, pool.index)
        schema = lane_schema(pa.from_numpy_dtype(pairs.source.values.dtype))
        for lane in range(self.config.lanes):
            micro_batches = [step[lane] for step in steps]
            rows = np.concatenate(micro_batches)
            columns = [
                pa.array([epoch]),
                pa.array([pool.index]),
                pa.array([lane]),
                pa.array([is_last]),
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
