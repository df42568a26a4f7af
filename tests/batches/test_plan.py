"""The data order: complete, within max_tokens, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batches.pairs import LENGTHS, plan
from tfray.batches.lengths import padded_length, round_down
from tfray.batches.mixing import Portion, draw_epoch
from tfray.batches.plan import Pool, Step, cut_by_tokens, plan_pools
from tfray.config import BatchesConfig

CONFIGS = st.builds(
    BatchesConfig,
    max_tokens=st.integers(10, 300),
    lanes=st.integers(1, 6),
    pool_examples=st.integers(1, 60),
    seed=st.integers(0, 9),
)
PORTIONS = st.lists(
    st.builds(
        Portion,
        pairs=st.integers(1, 50),
        repeats=st.floats(0.01, 5) | st.sampled_from([1.0, 2.0, 0.5]),
        corpus=st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=30,
)


def as_tuples(steps: list[Step]) -> list[list[tuple[int, ...]]]:
    return [[tuple(rows.tolist()) for rows in step] for step in steps]


def many_lengths(count: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(7)
    source = random.integers(3, 80, count)
    target = np.clip(source + random.integers(-5, 6, count), 1, None)
    return list(zip(source.tolist(), target.tolist(), strict=True))


@given(LENGTHS, CONFIGS)
def test_every_example_is_in_exactly_one_micro_batch(lengths: list[tuple[int, int]], config: BatchesConfig):
    micro_batches = {rows for step in as_tuples(plan(lengths, config)) for rows in step}
    assert sorted(row for rows in micro_batches for row in rows) == list(range(len(lengths)))


@given(LENGTHS, CONFIGS)
def test_micro_batches_are_repeated_only_to_fill_one_step(lengths: list[tuple[int, int]], config: BatchesConfig):
    steps = as_tuples(plan(lengths, config))

    def has_repeats(chosen: list[list[tuple[int, ...]]]) -> bool:
        flat = [rows for step in chosen for rows in step]
        return len(flat) > len(set(flat))

    distinct = {rows for step in steps for rows in step}
    assert len(steps) == -(-len(distinct) // config.lanes)
    assert any(not has_repeats(steps[:filled] + steps[filled + 1 :]) for filled in range(len(steps)))


@given(LENGTHS, CONFIGS)
def test_no_micro_batch_is_padded_beyond_max_tokens(lengths: list[tuple[int, int]], config: BatchesConfig):
    longest = np.array(lengths).max(1)
    for step in plan(lengths, config):
        for rows in step:
            assert len(rows) * padded_length(longest[rows].max()) <= config.max_tokens or len(rows) == 1


@given(LENGTHS, CONFIGS)
def test_every_step_has_a_micro_batch_for_each_lane(lengths: list[tuple[int, int]], config: BatchesConfig):
    assert all(len(step) == config.lanes and min(map(len, step)) > 0 for step in plan(lengths, config))


@given(LENGTHS, CONFIGS, st.integers(0, 5), st.integers(0, 5))
def test_same_arguments_give_the_same_plan(
    lengths: list[tuple[int, int]], config: BatchesConfig, epoch: int, pool: int
):
    assert as_tuples(plan(lengths, config, epoch, pool)) == as_tuples(plan(lengths, config, epoch, pool))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"pool": 1}])
def test_another_seed_epoch_or_pool_gives_another_order_and_other_companions(other: dict[str, int]):
    lengths = many_lengths(600)
    place = {"epoch": 0, "pool": 0, "seed": 1} | other
    config = BatchesConfig(max_tokens=500, lanes=2, seed=place["seed"])
    first = as_tuples(plan(lengths, BatchesConfig(max_tokens=500, lanes=2, seed=1)))
    second = as_tuples(plan(lengths, config, place["epoch"], place["pool"]))
    assert first != second
    assert {frozenset(rows) for step in first for rows in step} != {frozenset(rows) for step in second for rows in step}


def test_steps_are_not_ordered_by_length():
    longest = np.array(many_lengths(2000)).max(1)
    steps = plan(many_lengths(2000), BatchesConfig(max_tokens=500, lanes=2))
    widths = [longest[step[0]].max() for step in steps]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3


def test_lanes_of_a_step_are_of_like_length_and_little_is_padding():
    longest = np.array(many_lengths(4000)).max(1)
    steps = plan(many_lengths(4000), BatchesConfig(max_tokens=1000, lanes=4))
    widths = np.array([[longest[rows].max() for rows in step] for step in steps])
    assert (widths.max(1) - widths.min(1)).mean() < 4
    padded = sum(len(rows) * longest[rows].max() for step in steps for rows in step)
    assert sum(longest[rows].sum() for step in steps for rows in step) / padded > 0.95


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(5, 200))
def test_cuts_are_contiguous_and_could_take_no_eighth_of_their_rows_more(lengths: list[int], max_tokens: int):
    longest = np.sort(np.array(lengths))
    ranges = cut_by_tokens(longest, max_tokens)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(len(longest)))
    for start, stop in ranges[:-1]:
        more = start + round_down(stop - start) + max(1, (stop - start) // 8)
        assert more > len(longest) or (more - start) * longest[more - 1] > max_tokens


@pytest.mark.parametrize(("middle", "max_tokens"), [(16, 2048), (16, 4096), (110, 8192)])
def test_products_of_a_large_corpus_have_few_numbers_of_rows(middle: int, max_tokens: int):
    """A corpus of any lengths, in ever new orders: kernels are made for each, and kept."""
    random, seen = np.random.default_rng(1), set()
    for epoch in range(3):
        source = np.clip(middle * random.lognormal(0, 0.6, 20_000), 2, 500).astype(int)
        target = np.clip(source * random.normal(1, 0.15, len(source)), 2, 500).astype(int)
        steps = plan(
            list(zip(source.tolist(), target.tolist(), strict=True)), BatchesConfig(max_tokens=max_tokens), epoch
        )
        for rows in (rows for step in steps for rows in step):
            seen |= {len(rows) * padded_length(int(side[rows].max())) for side in (source, target)}
    assert len(seen) < 40


@given(st.integers(1, 10_000))
def test_a_length_is_padded_by_less_than_an_eighth_or_by_three(length: int):
    padded = padded_length(length)
    assert length <= padded < length + max(4, length / 8)
    assert padded == padded_length(padded) == int(padded_length(np.array([length]))[0])


@given(st.integers(1, 10_000))
def test_rows_are_left_to_the_next_micro_batch_only_by_less_than_an_eighth(rows: int):
    assert rows * 7 / 8 < round_down(rows) <= rows
    assert round_down(rows) == round_down(round_down(rows))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), CONFIGS, st.integers(0, 3))
def test_pools_hold_every_shard_once_and_are_just_full(examples: list[int], config: BatchesConfig, epoch: int):
    pools = plan_pools([Portion(pairs) for pairs in examples], config, epoch)
    assert sorted(shard for pool in pools for shard in shards(pool)) == list(range(len(examples)))
    assert [pool.index for pool in pools] == list(range(len(pools)))
    for pool in pools[:-1]:
        assert sum(examples[shard] for shard in shards(pool)) >= config.pool_examples
    for pool in pools:
        assert sum(examples[shard] for shard in shards(pool)[:-1]) < config.pool_examples


def test_pools_follow_from_seed_and_epoch_alone():
    portions, config = [Portion(10)] * 40, BatchesConfig(pool_examples=50)
    assert plan_pools(portions, config, 3) == plan_pools(portions, config, 3)
    assert plan_pools(portions, config, 3) != plan_pools(portions, config, 4)
    assert plan_pools(portions, config, 3) != plan_pools(portions, BatchesConfig(pool_examples=50, seed=2), 3)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), CONFIGS, st.integers(0, 3))
def test_one_corpus_of_weight_one_is_shuffled_shard_by_shard(examples: list[int], config: BatchesConfig, epoch: int):
    order = np.random.default_rng([config.seed, epoch]).permutation(len(examples))
    pools = plan_pools([Portion(pairs) for pairs in examples], config, epoch)
    assert [shard for pool in pools for shard in shards(pool)] == order.tolist()


@given(PORTIONS, CONFIGS, st.integers(0, 9))
def test_pools_hold_all_that_an_epoch_draws_and_are_bounded(portions: list[Portion], config: BatchesConfig, epoch: int):
    pools = plan_pools(portions, config, epoch)
    assert sorted(draw for pool in pools for draw in pool.draws) == sorted(draw_epoch(portions, epoch))
    for pool in pools:
        assert sum(draw.pairs for draw in pool.draws[:-1]) < config.pool_examples
        assert all(draw.pairs <= portions[draw.shard].pairs for draw in pool.draws)


def test_every_pool_sees_the_corpora_in_about_their_proportions():
    portions = [Portion(50, corpus="a")] * 60 + [Portion(10, 2.0, corpus="b")] * 75 + [Portion(25, 0.4, "c")] * 100
    for epoch in range(5):
        for pool in plan_pools(portions, BatchesConfig(pool_examples=600), epoch)[:-1]:
            seen = Counter()
            for draw in pool.draws:
                seen[portions[draw.shard].corpus] += draw.pairs
            assert abs(seen["a"] - 333) <= 67 + 50 and abs(seen["b"] - 167) <= 30 and abs(seen["c"] - 111) <= 30


def shards(pool: Pool) -> list[int]:
    return [draw.shard for draw in pool.draws]
