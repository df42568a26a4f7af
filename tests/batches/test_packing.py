"""Which pairs share a row: all of them in rows of bounded width, well filled, the same for the same seed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batches.pairs import LENGTHS, plan, sides
from tfray.batches import packing
from tfray.batches.lengths import padded_length
from tfray.batches.packing import Widths, fill_rows, first_fit, row_widths
from tfray.batches.plan import Step, shapes_of
from tfray.config import BatchesConfig

CONFIGS = st.builds(
    BatchesConfig,
    max_tokens=st.integers(10, 600),
    lanes=st.integers(1, 6),
    seed=st.integers(0, 9),
    packing=st.just(True),
)


def distinct(steps: list[Step]) -> set[tuple[int, ...]]:
    return {tuple(rows.tolist()) for step in steps for rows in step}


def varied_lengths(count: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(7)
    source = np.clip(random.lognormal(3.0, 0.7, count).astype(int), 1, 200)
    target = np.clip((source * random.normal(1.2, 0.2, count)).astype(int), 1, 200)
    return list(zip(source.tolist(), target.tolist(), strict=True))


@given(LENGTHS, CONFIGS)
def test_every_example_is_in_exactly_one_micro_batch(lengths: list[tuple[int, int]], config: BatchesConfig):
    steps = plan(lengths, config)
    assert all(len(step) == config.lanes and min(map(len, step)) > 0 for step in steps)
    assert sorted(row for rows in distinct(steps) for row in rows) == list(range(len(lengths)))
    assert len(steps) == -(-len(distinct(steps)) // config.lanes)


@given(LENGTHS, CONFIGS)
def test_a_micro_batch_fits_in_rows_of_at_most_max_tokens_or_in_one(
    lengths: list[tuple[int, int]], config: BatchesConfig
):
    source, target = sides(lengths)
    widths = row_widths(source, target, config.max_tokens)
    for rows in distinct(plan(lengths, config)):
        used = first_fit(source[list(rows)], target[list(rows)], widths).max() + 1
        assert used * max(widths) <= config.max_tokens or used == 1


@given(LENGTHS, st.integers(1, 600))
def test_a_row_holds_any_example_and_is_wider_than_max_tokens_only_for_one_that_is(
    lengths: list[tuple[int, int]], max_tokens: int
):
    widths, longest = row_widths(*sides(lengths), max_tokens), [int(side.max()) for side in sides(lengths)]
    assert widths.source >= longest[0] and widths.target >= longest[1]
    assert max(widths) <= max(max_tokens, padded_length(max(longest)))


@given(LENGTHS, st.integers(0, 60), st.integers(0, 60))
def test_first_fit_and_fill_rows_put_no_more_in_a_row_than_it_holds(
    lengths: list[tuple[int, int]], more_source: int, more_target: int
):
    source, target = sides(lengths)
    widths = Widths(int(source.max()) + more_source, int(target.max()) + more_target)
    for rows in (first_fit(source, target, widths), fill_rows(source, target, widths)):
        assert set(rows.tolist()) == set(range(rows.max() + 1))
        assert np.bincount(rows, source).max() <= widths.source
        assert np.bincount(rows, target).max() <= widths.target


@given(LENGTHS)
def test_first_fit_takes_the_first_row_with_room(lengths: list[tuple[int, int]]):
    source, target = sides(lengths)
    widths = Widths(70, 80)
    rows = first_fit(source, target, widths)
    for example in range(len(rows)):
        earlier = np.arange(len(rows)) < example
        for row in range(rows[example]):
            held = earlier & (rows == row)
            assert source[held].sum() + source[example] > 70 or target[held].sum() + target[example] > 80


def test_streams_that_are_packed_side_by_side_are_those_packed_alone(monkeypatch: pytest.MonkeyPatch):
    source, target = sides(varied_lengths(100))
    widths = Widths(250, 250)
    monkeypatch.setattr(packing, "STREAM", 30)  # three streams of 34, 34 and 32
    together = fill_rows(source, target, widths)
    parts = [slice(0, 34), slice(34, 68), slice(68, 100)]
    alone = [fill_rows(source[part], target[part], widths) for part in parts]
    starts = np.cumsum([0, *(rows.max() + 1 for rows in alone)])
    assert (
        together.tolist() == np.concatenate([rows + start for rows, start in zip(alone, starts, strict=False)]).tolist()
    )


def test_less_than_a_twentieth_is_padding_and_less_than_without_packing():
    source, target = sides(varied_lengths(20_000))
    padding = {}
    for is_packed in (True, False):
        config = BatchesConfig(max_tokens=4096, lanes=4, packing=is_packed)
        steps = plan(varied_lengths(20_000), config)
        real = sum(int(source[rows].sum() + target[rows].sum()) for step in steps for rows in step)
        padding[is_packed] = 1 - real / sum(shape.tokens for shape in shapes_of(source, target, steps, config))
    assert padding[True] < 0.05 < padding[False]


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"pool": 1}])
def test_another_seed_epoch_or_pool_gives_other_companions_and_the_same_the_same(other: dict[str, int]):
    def batches(seed: int = 1, epoch: int = 0, pool: int = 0) -> list[list[list[int]]]:
        steps = plan(varied_lengths(600), BatchesConfig(max_tokens=1000, seed=seed, packing=True), epoch, pool)
        return [[rows.tolist() for rows in step] for step in steps]

    assert batches() == batches() != batches(**other)


def test_micro_batches_are_of_about_the_same_number_of_tokens():
    _, target = sides(varied_lengths(5000))
    steps = plan(varied_lengths(5000), BatchesConfig(max_tokens=2000, lanes=2, packing=True))
    tokens = sorted(int(target[list(rows)].sum()) for rows in distinct(steps))
    assert all(later < 1.2 * earlier for earlier, later in pairwise(tokens[1:]))
    assert tokens[1] > 0.8 * tokens[-1]
