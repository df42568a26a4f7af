"""Where the examples of a micro-batch come from: found from the plan alone, when somebody asks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfray.batches.mixing import drawn_rows
from tfray.batches.plan import plan_pool, plan_pools
from tfray.batches.pool import PoolReader
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder, read_columns


class Origin(NamedTuple):
    """An example's place in the tokens folder and in the corpus that this was made from."""

    shard: str
    shard_row: int
    corpus: str
    file: str
    row: int
    """Number of the row in its file, from 0."""


def find_origins(
    tokens: TokenFolder, config: BatchesConfig, epoch: int, pool: int, step: int, lane: int
) -> list[Origin]:
    """Return where each example of a micro-batch comes from; `step` is that within the pool."""
    reader = PoolReader(tokens, config)
    place = plan_pools(reader.portions, config, epoch)[pool]
    lengths = reader.read(place, epoch).lengths
    examples = plan_pool(*lengths, config, epoch, pool)[step][lane]
    starts = np.cumsum([0, *(draw.pairs for draw in place.draws)])
    origins: dict[int, Origin] = {}
    for start, draw in zip(starts, place.draws, strict=False):
        wanted = examples[(examples >= start) & (examples < start + draw.pairs)]
        if len(wanted):
            rows = drawn_rows(draw, reader.portions[draw.shard], config.seed)[wanted - start]
            name = tokens.shards("train")[draw.shard].name
            table = read_columns(reader.paths[draw.shard], ["corpus", "file", "row"]).take(rows)
            texts = table.to_pylist()
            origins |= {
                int(example): Origin(name, int(row), **text)
                for example, row, text in zip(wanted, rows, texts, strict=True)
            }
    return [origins[int(example)] for example in examples]
