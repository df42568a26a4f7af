"""Where the data order changes, training goes on from a place that means the same in the new one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.order import Cursor, order_of, place_again
from tfray.batches.plan import plan_pools
from tfray.batches.pool import PoolReader
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder

CONFIG = BatchesConfig(max_tokens=100, pool_examples=50, lanes=2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens) -> TokenFolder:
    random = np.random.default_rng(2)
    shards = [("a", [(random.integers(3, 300, 4).tolist(), [5]) for _ in range(30)]) for _ in range(6)]
    return write_tokens(str(tmp_path_factory.mktemp("tokens")), shards, vocab_size=300, fingerprint="f")


def seen(tokens: TokenFolder, config: BatchesConfig, start: Cursor, stop: Cursor) -> Counter[tuple]:
    """Return the sources of whole pools from one place to another."""
    found: Counter[tuple] = Counter()
    reader = PoolReader(tokens, config)
    for epoch in range(start.epoch, stop.epoch):
        for pool in plan_pools(reader.portions, config, epoch)[start.pool if epoch == start.epoch else 0 :]:
            source = reader.read(pool, epoch).source
            found.update(tuple(ids) for ids in np.split(source.values, source.offsets[1:-1]))
    return found


CHANGES = [
    {},
    *({"max_tokens": 60}, {"lanes": 4}, {"packing": True}, {"max_tokens": 50, "lanes": 1}),
    *({"pool_examples": 80}, {"seed": 2}, {"temperature": 2.0, "max_tokens": 60}, {"weights": {"a": 1.0}}),
]


@given(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.sampled_from(CHANGES))
def test_nothing_of_an_epoch_is_left_out_and_what_is_done_again_is_the_part_that_was_begun(
    tokens: TokenFolder, epoch: int, pool: int, step: int, change: dict[str, Any]
):
    cursor, after = Cursor(epoch, pool, step), replace(CONFIG, **change)
    place = place_again(cursor, order_of(tokens, CONFIG), order_of(tokens, after))
    assert place.epoch == epoch and place <= cursor
    assert place == cursor if not change else place.step == 0
    ends = Cursor(epoch + 1)
    before = seen(tokens, CONFIG, Cursor(epoch), ends) - seen(tokens, CONFIG, Cursor(epoch, pool), ends)
    assert not seen(tokens, CONFIG, Cursor(epoch), ends) - before - seen(tokens, after, place, ends)
    if not {"pool_examples", "seed", "temperature", "weights"} & change.keys():
        assert place.pool == pool, "the pools before are the same, and are not done again"


def test_whole_numbers_are_the_same_order_as_the_floats_that_a_file_gives_back(tokens: TokenFolder):
    from_python = replace(CONFIG, temperature=2, bpe_dropout=0, weights={"a": 1})
    assert order_of(tokens, from_python) == order_of(
        tokens, replace(CONFIG, temperature=2.0, bpe_dropout=0.0, weights={"a": 1.0})
    )
    whole = replace(tokens, manifest=tokens.manifest | {"weights": {"a": 2}})
    assert order_of(whole, CONFIG) == order_of(
        replace(tokens, manifest=tokens.manifest | {"weights": {"a": 2.0}}), CONFIG
    )


def test_other_shards_are_another_order(tokens: TokenFolder, tmp_path: Path, write_tokens):
    other = write_tokens(str(tmp_path), [("a", [([7], [5])] * 30)] * 6, vocab_size=300, fingerprint="g")
    assert place_again(Cursor(1, 2, 3), order_of(tokens, CONFIG), order_of(other, CONFIG)) == Cursor(1)
