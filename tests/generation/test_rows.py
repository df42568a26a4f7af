"""Bad rows get one clear error each, and their companions what they get alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tfray.config import GenerationConfig
from tfray.generation.budget import plan_groups, row_bytes
from tfray.generation.cache import round_up
from tfray.generation.generate import generate
from tfray.generation.network import Network
from tfray.generation.pieces import split_source
from tfray.generation.rows import Request
from tfray.generation.soundness import contains

BEAM = GenerationConfig(beam_size=2, precision="fp32")
BAD = [
    (Request([]), BEAM, "empty: the source has no tokens"),
    (Request([0, 0]), BEAM, "empty: the source is padding"),
    (Request([3, 0, 2]), BEAM, "bad_id: the source has padding"),
    (Request([3, 15, 2]), BEAM, "bad_id: source has the id 15, the vocabulary ends at 14"),
    (Request([3, -1, 2]), BEAM, "bad_id: source has the id -1"),
    (Request([3] * 30), BEAM, "too_long: the source has 30 tokens, the model takes 24"),
    (Request([3, 2], prefix=[99]), BEAM, "bad_id: prefix"),
    (Request([3, 2], must=[[4, 99]]), BEAM, "bad_id: must"),
    (Request([3, 2], must=[[]]), BEAM, "constraint: a phrase is empty"),
    (Request([3, 2], must=[[4, 5, 6]], must_not=[[5, 6]]), BEAM, "constraint: must asks for"),
    (Request([3, 2], prefix=[4, 5], must_not=[[5]]), BEAM, "constraint: prefix asks for"),
    (Request([3, 2], must=[[4, 2]]), BEAM, "constraint: must asks for the id 2"),
    (Request([3, 2], must=[[4] * 25]), BEAM, "constraint: must needs 25 tokens and an end"),
    (
        Request([3, 2], must=[[4]]),
        GenerationConfig(beam_size=1, precision="fp32"),
        "constraint: must-phrases need beam",
    ),
    (Request([3, 2], prefix=[4] * 24), BEAM, "prefix: its 24 tokens leave no room"),
    (Request([3, 2]), GenerationConfig(min_length=30, precision="fp32"), "length: the target must have 30"),
    (
        Request([3, 2]),
        GenerationConfig(min_length_ratio=1e308, max_length_ratio=1e308, precision="fp32"),
        "length: the target must have 1000000000 tokens",
    ),
    (Request([3, 2]), GenerationConfig(memory_gb=1e-9, precision="fp32"), "too_large: a row of 2 source tokens"),
    (Request([3, 2], must=[[4, 1]]), BEAM, "constraint: must asks for the id 1, which never occurs"),
    (Request([3, 2], must_not=[[5], [2]]), BEAM, "constraint: must_not forbids [2], and id 2 ends every target"),
    (
        Request([3, 2], must=[[4, 5, 6], [7, 8, 9]]),
        GenerationConfig(beam_size=2, max_length=6, long_sources="split", precision="fp32"),
        "constraint: must needs 6 tokens and an end, and the target has room for 6",
    ),
    (
        Request([3, 2], prefix=[4, 5], must=[[5, 6, 7]]),
        GenerationConfig(beam_size=2, max_length=4, precision="fp32"),
        "constraint: must needs 2 tokens and an end, and the target has room for 2",
    ),
    (
        Request([3, 2], must=[[4, 4]]),
        GenerationConfig(no_repeat_ngram=1, precision="fp32"),
        "constraint: must repeats [4], which no_repeat_ngram=1 forbids",
    ),
    (
        Request([3, 2], must=[[4, 5, 6], [3, 4, 5]]),
        GenerationConfig(no_repeat_ngram=2, precision="fp32"),
        "constraint: must repeats [4, 5], which no_repeat_ngram=2 forbids",
    ),
    (
        Request([3, 2], prefix=[4, 4]),
        GenerationConfig(no_repeat_ngram=1, beam_size=1, precision="fp32"),
        "constraint: prefix repeats [4], which no_repeat_ngram=1 forbids",
    ),
]
SEARCHES: list[dict[str, Any]] = [
    dict(beam_size=1),
    dict(beam_size=3, n_best=2),
    dict(search="sample", samples=3),
    dict(search="sample", samples=2, top_p=0.9),
]


@pytest.mark.parametrize("request_, config, message", BAD, ids=[message for _, _, message in BAD])
def test_a_bad_row_gets_a_typed_error(request_, config, message, lively):
    output = generate(lively(1), [request_], config)[0]
    assert output.error is not None and output.error.startswith(message)
    assert output.hypotheses == [] and not output.hit_max_length


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize(
    "dead_end",
    [
        dict(suppress_tokens=list(range(3, 15)), min_length=1),
        dict(suppress_tokens=list(range(5, 15)), no_repeat_ngram=1, min_length=3),
    ],
    ids=["at once", "later"],
)
def test_a_row_in_which_nothing_may_follow_gets_an_error_in_every_search(dead_end, search, lively):
    config = GenerationConfig(**search, **dead_end, precision="fp32")
    for output in generate(lively(1), [[3, 2], [5, 6, 2]], config):
        assert output.error is not None and output.error.startswith("constraint: the search found no target")
        assert output.hypotheses == []


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_what_cannot_go_on_is_dropped_and_the_rest_stays(search, lively):
    """Of the words 3 and 4, each once: 3 4 is forbidden, so that 3 is a dead end."""
    config = GenerationConfig(**search, no_repeat_ngram=1, min_length=2, suppress_tokens=list(range(5, 15)))
    if config.search == "sample":
        config = replace(config, temperature=50.0)
    rows = generate(lively(2), [Request([7, 2], must_not=[[3, 4]], number=row) for row in range(12)], config)
    found = [hypothesis.ids for output in rows for hypothesis in output.hypotheses]
    assert all(ids == [4, 3] for ids in found)
    assert found or search == dict(beam_size=1)
    if config.search == "sample":
        assert 0 < len(found) < 12 * config.samples


def test_companions_of_bad_rows_get_what_they_get_alone(lively, sources_of):
    network, sources = Network(lively(1)), sources_of(20)
    expected = generate(network, sources, BEAM)
    bad = [row[0] for row in BAD if row[1] is BEAM]
    mixed = [item for pair in zip(sources, bad, strict=False) for item in pair]
    found = generate(network, mixed, BEAM)
    assert [output.hypotheses for output in found[::2]] == [output.hypotheses for output in expected[: len(bad)]]
    assert all(output.error for output in found[1::2])


def test_a_row_too_large_for_the_memory_does_not_hinder_smaller_ones(lively):
    network, long, short = Network(lively(1, max_length=200)), [*[3] * 150, 2], [4, 2]
    budget = row_bytes(30, 80, 2, [network], BEAM) / 2**30
    config = GenerationConfig(beam_size=2, memory_gb=budget)
    found = generate(network, [short, long, short], config)
    assert found[1].error is not None and found[1].error.startswith("too_large")
    assert found[0] == found[2] == generate(network, [short], BEAM)[0]


def test_long_sources_are_cut_or_split_as_configured_and_never_silently(lively):
    model, long = lively(3, max_length=10), [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3, 4, 2]
    cut, short = generate(model, [long, [4, 2]], GenerationConfig(long_sources="truncate", precision="fp32"))
    assert cut.truncated and not short.truncated
    alone = generate(model, [[*long[:9], 2]], BEAM_OF_FOUR)[0]
    assert cut.hypotheses == alone.hypotheses
    split = generate(model, [[4, 2], long], GenerationConfig(long_sources="split", precision="fp32"))[1]
    pieces = split_source(long, 10)
    assert [token for piece in pieces for token in piece[:-1]] == long[:-1]
    assert all(len(piece) <= 10 for piece in pieces)
    parts = [output.best for output in generate(model, pieces, BEAM_OF_FOUR)]
    assert split.best.ids == [token for part in parts for token in part.ids]
    assert split.best.score == sum(part.score for part in parts)
    assert split.error is None and not split.truncated


def test_the_limits_of_a_split_source_are_those_of_its_pieces(lively):
    model, long = lively(1), [*[3] * 30, 2]  # pieces of 16 tokens
    limits = dict(long_sources="split", max_length_ratio=1.0, max_length_extra=1, beam_size=1, precision="fp32")

    def error_of(prefix: int, least: int) -> str | None:
        config = GenerationConfig(**limits, min_length=least)
        return generate(model, [Request(long, prefix=[4] * prefix)], config)[0].error

    assert error_of(16, 16) is None
    assert error_of(17, 0) == "prefix: its 17 tokens leave no room in a target of 17"
    assert error_of(0, 17) == "length: the target must have 17 tokens at least, and 16 and an end at most"


def test_a_forbidden_phrase_stands_not_even_where_pieces_of_a_split_source_meet(lively):
    model, config = (
        lively(4, max_length=8),
        GenerationConfig(beam_size=2, max_length=6, long_sources="split", precision="fp32"),
    )
    met = 0
    for seed in range(8):
        source = [*random.Random(seed).choices(range(3, 15), k=15), 2]
        first, second = (piece.ids for piece in generate(model, [source], config)[0].best.pieces[:2])
        if first and second:
            seam = [first[-1], second[0]]
            found = generate(model, [Request(source, must_not=[seam])], config)[0]
            assert not any(contains(hypothesis.ids, seam) for hypothesis in found.hypotheses)
            assert found.hypotheses or found.error
            met += 1
    assert met > 3


def test_models_of_other_lengths_decide_together_as_far_as_the_shortest_sees(lively):
    config = GenerationConfig(beam_size=2, min_length_ratio=1.0, long_sources="split", precision="fp32")
    source = [*([3, 4, 5, 6] * 6)[:23], 2]
    found = generate([lively(1, max_length=24), lively(2, max_length=12)], [source], config)[0]
    assert found.error is None and len(found.best.pieces) > 1


def test_long_sources_are_encoded_alone(lively, sources_of, monkeypatch):
    encoded: list[list[int]] = []
    usual = Network.encode
    monkeypatch.setattr(
        Network, "encode", lambda self, sources: encoded.append([*map(len, sources)]) or usual(self, sources)
    )
    monkeypatch.setattr("tfray.generation.engine.CHUNK_TOKENS", 20)
    generate(lively(1, max_length=40), [[*[3] * 29, 2]] * 9 + sources_of(20), BEAM_OF_FOUR)
    assert sum(map(len, encoded)) == 29 and max(map(len, encoded)) > 1
    assert all(sum(lengths) <= 20 for lengths in encoded if len(lengths) > 1)


BEAM_OF_FOUR = GenerationConfig(precision="fp32")


def test_groups_hold_every_row_once_and_fit_the_budget(lively, sources_of):
    network = Network(lively(0, max_length=400))
    sources = [[3] * length + [2] for length in (300, 250, 200, 90, 50, 20, 10, 5, 2, 1)] * 3
    ordered = sorted(enumerate(map(Request, sources)), key=lambda item: (-len(item[1].source), item[0]))
    config = GenerationConfig(max_tokens=3000)
    groups = list(plan_groups(ordered, [network], config, 4))
    assert [item for group in groups for item in group.rows] == ordered
    assert len(groups) > 1
    for group in groups:
        first = len(group.rows[0][1].source)
        target = min(2 * first + 20, 400)
        assert group.slots == 1 or group.slots * (round_up(first) + 4 * target) <= 3000


def test_no_sources_give_no_results(lively):
    assert generate(lively(0), [], BEAM) == []


@pytest.mark.parametrize(
    "large", [dict(search="sample", top_k=10**20), dict(max_length_ratio=1e308), dict(memory_gb=1e308)], ids=str
)
def test_a_limit_beyond_all_numbers_is_no_limit(large, lively, sources_of):
    enough = {"top_k": 14, "max_length_ratio": 1e6, "memory_gb": 1.0}
    usual = {name: enough.get(name, value) for name, value in large.items()}
    model, sources = lively(1), sources_of(5)
    found, expected = (generate(model, sources, GenerationConfig(**own, precision="fp32")) for own in (large, usual))
    assert found == expected
