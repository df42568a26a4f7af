"""Where a micro-batch's examples come from, against what the feed hands out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from tfray.batches.feed import PoolLanes, read_feed
from tfray.batches.order import Cursor
from tfray.batches.origin import Origin, find_origins
from tfray.batches.plan import plan_pools
from tfray.batches.pool import mix_shards
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, read_columns

SIZES = [("a", 9), ("b", 21), ("a", 4), ("b", 13)]
PLAIN = BatchesConfig(max_tokens=40, lanes=2, pool_examples=20)
MIXED = BatchesConfig(max_tokens=40, lanes=2, pool_examples=20, weights={"a": 2.3, "b": 0.6})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens: Callable[..., TokenFolder]) -> TokenFolder:
    random = np.random.default_rng(5)

    def ids() -> list[int]:
        return random.integers(3, 1000, random.integers(1, 12)).tolist()

    shards = [(corpus, [(ids(), ids()) for _ in range(pairs)]) for corpus, pairs in SIZES]
    return write_tokens(str(tmp_path_factory.mktemp("tokens")), shards)


def sources_at(tokens: TokenFolder, origins: list[Origin]) -> list[list[int]]:
    """Return the sources that stand where the origins say."""
    paths = dict(zip((shard.name for shard in tokens.shards("train")), tokens.paths("train"), strict=True))
    names = ["source_ids", "corpus", "file", "row"]
    rows = [read_columns(paths[origin.shard], names).slice(origin.shard_row, 1) for origin in origins]
    found = pa.concat_tables(rows).to_pylist()
    assert [(row["corpus"], row["file"], row["row"]) for row in found] == [(o.corpus, o.file, o.row) for o in origins]
    return [row["source_ids"] for row in found]


@pytest.mark.parametrize("config", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_every_example_of_the_feed_is_found_where_it_is_said_to_come_from(tokens: TokenFolder, config: BatchesConfig):
    lanes_of = PoolLanes(tokens, config, Cursor())
    seen = 0
    for epoch in range(2):
        pools = plan_pools(mix_shards(tokens, config), config, epoch)
        lanes = (lane for pool in pools for lane in lanes_of.lanes(epoch, pool, is_last=pool is pools[-1]))
        rows = [pa.Table.from_batches([lane]) for lane in lanes]
        for step in read_feed(iter(rows), [0, 1], Cursor(epoch)):
            for lane, batch in enumerate(step.micro_batches):
                origins = find_origins(tokens, config, *step.cursor, lane)
                expected = [[token for token in row if token] for row in batch.source_ids.tolist()]
                assert sources_at(tokens, origins) == expected
                seen += len(origins)
    portions = mix_shards(tokens, config)
    assert len(pools) > 1 and seen >= 2 * sum(int(portion.pairs * portion.repeats) for portion in portions)
