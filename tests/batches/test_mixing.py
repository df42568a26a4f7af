"""Mixing: each pair as often as its corpus' weight says, in any epoch, from the epoch's number alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.mixing import Draw, Portion, corpus_repeats, draw_epoch, drawn_rows, interleave

REPEATS = st.floats(0.01, 6) | st.sampled_from([1.0, 2.0, 0.5, 0.1, 1 / 3])
SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**7), min_size=1)
WEIGHTS = st.fixed_dictionaries({name: st.floats(0.01, 100) for name in "abcdef"})
EVEN = dict.fromkeys("abcdef", 1.0)


def seen(portions: list[Portion], epochs: range, seed: int = 1) -> list[np.ndarray]:
    """Return how often each pair of each shard is drawn."""
    counts = [np.zeros(portion.pairs, dtype=int) for portion in portions]
    for epoch in epochs:
        for draw in draw_epoch(portions, epoch):
            rows = drawn_rows(draw, portions[draw.shard], seed)
            assert len(rows) == len(set(rows.tolist())) == draw.pairs
            counts[draw.shard][rows] += 1
    return counts


@given(
    st.lists(st.builds(Portion, st.integers(1, 60), REPEATS), min_size=1, max_size=5),
    st.integers(1, 15),
    st.integers(0, 5),
)
def test_every_pair_is_seen_floor_or_ceil_of_its_repeats_in_all_epochs(portions: list[Portion], epochs: int, seed: int):
    for portion, counts in zip(portions, seen(portions, range(epochs), seed), strict=True):
        exact = Fraction(portion.repeats) * epochs
        assert math.floor(exact) <= counts.min() and counts.max() <= math.ceil(exact)
        assert counts.sum() == pytest.approx(exact * portion.pairs, abs=0.5 + 1e-9)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1),
    WEIGHTS,
    st.floats(0.5, 50),
    st.integers(1, 8),
)
def test_the_corpora_keep_this_promise_for_any_sizes_weights_and_temperature(
    corpora: dict[str, list[int]], weights: dict[str, float], temperature: float, epochs: int
):
    repeats = corpus_repeats({name: sum(sizes) for name, sizes in corpora.items()}, weights, temperature)
    portions = [Portion(size, repeats[name], name) for name, sizes in corpora.items() for size in sizes]
    for portion, counts in zip(portions, seen(portions, range(epochs)), strict=True):
        exact = Fraction(repeats[portion.corpus]) * epochs
        assert math.floor(exact) <= counts.min() and counts.max() <= math.ceil(exact)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 50))
def test_once_an_epoch_is_every_shard_whole_in_the_order_of_its_file(sizes: list[int], epoch: int):
    draws = draw_epoch([Portion(size) for size in sizes], epoch)
    assert [draw.shard for draw in draws] == list(range(len(sizes)))
    for draw, size in zip(draws, sizes, strict=True):
        assert drawn_rows(draw, Portion(size), seed=1).tolist() == list(range(size))


@given(st.integers(1, 40), REPEATS, st.integers(0, 20))
def test_epochs_follow_each_other_without_a_gap(size: int, repeats: float, epoch: int):
    draws = [draw for e in (epoch, epoch + 1) for draw in draw_epoch([Portion(size, repeats)], e)]
    assert all(before.stop == after.start for before, after in itertools.pairwise(draws))


def test_a_fraction_is_a_random_subset_and_follows_from_seed_and_shard():
    portion, draw = Portion(1000, 0.1), Draw(0, 0, 100)
    rows = drawn_rows(draw, portion, seed=1)
    assert 300 < rows.mean() < 700 and rows.max() > 900
    assert rows.tolist() == drawn_rows(draw, portion, seed=1).tolist()
    assert rows.tolist() != drawn_rows(draw, portion, seed=2).tolist()
    assert rows.tolist() != drawn_rows(draw._replace(shard=1), portion, seed=1).tolist()


@given(SIZES, WEIGHTS)
def test_at_temperature_one_the_repeats_are_the_weights(sizes: dict[str, int], weights: dict[str, float]):
    repeats = corpus_repeats(sizes, weights, 1.0)
    assert repeats == {name: pytest.approx(weights[name], rel=1e-11) for name in sizes}
    assert corpus_repeats(sizes, EVEN, 1.0) == dict.fromkeys(sizes, 1.0)


@given(SIZES, st.floats(0.2, 100))
def test_temperature_keeps_the_size_of_the_epoch(sizes: dict[str, int], temperature: float):
    repeats = corpus_repeats(sizes, EVEN, temperature)
    assert sum(repeats[name] * size for name, size in sizes.items()) == pytest.approx(sum(sizes.values()))


def test_temperature_takes_powers_of_the_sizes_and_weights_come_on_top():
    sizes = {"a": 90_000, "b": 10_000}
    assert corpus_repeats(sizes, EVEN, 2.0) == pytest.approx({"a": 75_000 / 90_000, "b": 25_000 / 10_000})
    assert corpus_repeats(sizes, EVEN | {"b": 3.0}, 2.0)["b"] == pytest.approx(7.5)


@given(SIZES)
def test_a_large_temperature_makes_corpora_even_and_a_small_one_does_not_overflow(sizes: dict[str, int]):
    repeats = corpus_repeats(sizes, EVEN, 1e6)
    seen = [repeats[name] * size for name, size in sizes.items()]
    assert max(seen) / min(seen) < 1.001
    assert all(map(math.isfinite, corpus_repeats(sizes, EVEN, 1e-3).values()))


def test_corpora_of_one_size_are_seen_exactly_once_at_any_temperature():
    assert corpus_repeats({"a": 7, "b": 7, "c": 7}, EVEN, 3.0) == {"a": 1.0, "b": 1.0, "c": 1.0}


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab")), min_size=1, max_size=40), st.integers(0, 9))
def test_interleaving_keeps_the_shuffle_of_each_corpus_and_its_share_of_every_prefix(
    draws: list[tuple[int, str]], seed: int
):
    pairs, corpora = np.array([size for size, _ in draws]), np.array([corpus for _, corpus in draws])
    order = interleave(pairs, corpora, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(draws)))
    shuffled = np.random.default_rng(seed).permutation(len(draws))
    totals = Counter({corpus: int(pairs[corpora == corpus].sum()) for corpus in "ab"})
    largest = {corpus: max(pairs[corpora == corpus], default=0) for corpus in "ab"}
    for corpus in "ab":
        own = [number for number in order if corpora[number] == corpus]
        assert own == [number for number in shuffled if corpora[number] == corpus]
    if min(totals.values()) > 0:
        for stop in range(len(order)):
            shares = {c: sum(pairs[n] for n in order[:stop] if corpora[n] == c) / totals[c] for c in "ab"}
            assert abs(shares["a"] - shares["b"]) <= sum(largest[c] / totals[c] for c in "ab") + 1e-9
