"""Every option of the search against the slow and obvious search."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.errors import InputError
from tfray.generation.generate import generate
from tfray.generation.rows import Request, longest_target, shortest_target
from tfray.generation.soundness import contains

OPTIONS: list[dict[str, Any]] = [
    dict(),
    dict(length_penalty=0.0),
    dict(length_penalty=0.6, length_normalization="gnmt"),
    dict(length_penalty=2.0),
    dict(early_stopping="beam"),
    dict(coverage_penalty=0.4),
    dict(min_length=6),
    dict(min_length_ratio=1.5),
    dict(max_length=5),
    dict(max_length_ratio=0.7, max_length_extra=2),
    dict(no_repeat_ngram=1),
    dict(no_repeat_ngram=2),
    dict(no_repeat_ngram=3, min_length=8),
    dict(repetition_penalty=1.7),
    dict(repetition_penalty=0.6),
    dict(suppress_tokens=[5, 9, 11]),
    dict(suppress_tokens=[*range(3, 12), 14], no_repeat_ngram=1, min_length=3),
]


def check(models, sources, config, obvious) -> None:
    for source, output in zip(sources, generate(models, sources, config), strict=True):
        length = len(source.source if isinstance(source, Request) else source)
        if shortest_target(length, config) + 1 > longest_target(length, 14, config):
            assert output.error is not None and output.error.startswith("length: ")
            continue
        expected = obvious(models, source, config)
        if not expected:
            assert output.error is not None and output.error.startswith("constraint: ")
        assert [h.ids for h in output.hypotheses] == [h.ids for h in expected]
        assert [h.is_finished for h in output.hypotheses] == [h.is_finished for h in expected]
        assert [h.score for h in output.hypotheses] == pytest.approx([h.score for h in expected], abs=1e-3)
        if config.beam_size > 1:
            found = [h.ranking_score for h in output.hypotheses]
            assert found == pytest.approx([h.ranking_score for h in expected], abs=1e-3)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option_does_what_the_obvious_search_does(options, beam_size, lively, obvious, sources_of):
    if beam_size == 1 and "coverage_penalty" in options:
        return
    config = GenerationConfig(
        **{"max_length_extra": 4, "batch_rows": 4, **options},
        beam_size=beam_size,
        n_best=min(2, beam_size),
        precision="fp32",
    )
    for seed in (1, 4):
        check(lively(seed, max_length=14), sources_of(7, seed=seed), config, obvious)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_prefixes_and_forbidden_phrases_hold_row_by_row(beam_size, lively, obvious, sources_of):
    model, config = lively(3, max_length=12), GenerationConfig(beam_size=beam_size, batch_rows=3, precision="fp32")
    sources = sources_of(9)
    free = generate(model, sources, config)
    requests = [
        Request(
            source,
            prefix=[4, 7][: row % 3],
            must_not=[output.best.ids[2:4]] if row % 2 and len(output.best.ids) > 3 else [],
        )
        for row, (source, output) in enumerate(zip(sources, free, strict=True))
    ]
    assert sum(bool(request.must_not) for request in requests) > 1
    check(model, requests, config, obvious)
    for request, output in zip(requests, generate(model, requests, config), strict=True):
        assert output.best.ids[: len(request.prefix)] == list(request.prefix)
        assert not any(contains(output.best.ids, phrase) for phrase in request.must_not)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_several_models_decide_by_their_mean_probability(beam_size, lively, obvious, sources_of):
    models = [
        lively(1, max_length=12),
        lively(6, max_length=12, d_model=24),
        lively(7, max_length=12, decoder_layers=1),
    ]
    check(models, sources_of(6), GenerationConfig(beam_size=beam_size, batch_rows=4, precision="fp32"), obvious)


def test_models_with_other_vocabularies_cannot_decide_together(lively, sources_of):
    with pytest.raises(InputError, match="one tokenizer"):
        generate([lively(0), lively(0, vocab_size=16)], sources_of(1), GenerationConfig())


def all_targets(vocab_size: int, longest: int):
    targets = [[]]
    for _ in range(longest + 1):
        yield from targets
        targets = [[*ids, token] for ids in targets for token in range(3, vocab_size)]


@torch.no_grad()
def true_score(model, source, ids) -> float:
    labels = [*ids, 2]
    log_probs = model(torch.tensor([source]), torch.tensor([[1, *ids]])).double().log_softmax(-1)
    return float(log_probs[0, range(len(labels)), labels].sum())


@pytest.mark.parametrize("normalization", ["average", "gnmt"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_targets(seed, length_penalty, normalization, lively):
    model, limit = lively(seed, vocab_size=5), 4
    config = GenerationConfig(
        beam_size=2**limit,  # V^L of two words
        n_best=3,
        length_penalty=length_penalty,
        length_normalization=normalization,
        max_length=limit,
        precision="fp32",
    )
    sources = [[3, 2], [3, 4, 3, 2], [2]]
    for source, output in zip(sources, generate(model, sources, config), strict=True):
        ranked = []
        for ids in all_targets(5, limit - 1):
            base = len(ids) + 1 if normalization == "average" else (6 + len(ids)) / 6
            ranked.append((true_score(model, source, ids) / base**length_penalty, ids))
        ranked.sort(reverse=True)
        assert [h.ids for h in output.hypotheses] == [ids for _, ids in ranked[:3]]
        assert [h.ranking_score for h in output.hypotheses] == pytest.approx([rank for rank, _ in ranked[:3]], abs=1e-3)


@pytest.mark.parametrize("must", [[[3]], [[4, 3]], [[3, 3], [4]]], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_with_phrases_finds_the_best_target_that_contains_them(seed, must, lively):
    model, limit = lively(seed, vocab_size=5), 5
    config = GenerationConfig(beam_size=40, max_length=limit, length_penalty=0.0, precision="fp32")
    sources = [[3, 2], [4, 4, 3, 2]]
    outputs = generate(model, [Request(source, must=must) for source in sources], config)
    for source, output in zip(sources, outputs, strict=True):
        able = [ids for ids in all_targets(5, limit - 1) if all(contains(ids, phrase) for phrase in must)]
        best = max(able, key=lambda ids: true_score(model, source, ids))
        assert output.best.is_finished
        assert output.best.ids == best
        assert output.best.score == pytest.approx(true_score(model, source, best), abs=1e-3)


MANNERS: list[dict[str, Any]] = [
    dict(),
    dict(length_penalty=0.0),
    dict(early_stopping="beam"),
    dict(no_repeat_ngram=1),
    dict(no_repeat_ngram=2, min_length=7),
]


@pytest.mark.parametrize("beam_size", [2, 3, 6])
@pytest.mark.parametrize("options", MANNERS, ids=str)
def test_phrases_are_met_as_the_obvious_search_meets_them(options, beam_size, lively, obvious, sources_of):
    config = GenerationConfig(**{"max_length_extra": 5, "n_best": 2, **options}, beam_size=beam_size, precision="fp32")
    phrases = [[[7, 8], [12]], [[3, 9, 4]], [[5], [6], [9, 10]], [[13]], ()]
    prefixes = [(), (), (4, 7), (3,)]
    requests = [
        Request(source, must=phrases[row % 5], prefix=prefixes[row % 4]) for row, source in enumerate(sources_of(20))
    ]
    assert sum(bool(request.must and request.prefix) for request in requests) > 6
    check(lively(3, max_length=14), requests, config, obvious)


def test_a_prefix_that_ends_in_one_phrase_of_another_leaves_it_room(lively):
    request = Request([5, 6, 2], prefix=[4, 7, 9], must=[[4, 7, 9], [7]])
    output = generate(lively(3), [request], GenerationConfig(max_length=5, precision="fp32"))[0]
    assert output.error is None and output.best.ids == [4, 7, 9, 7]


@pytest.mark.parametrize("beam_size", [4, 5, 8])
def test_a_target_that_has_met_its_phrases_ends_though_others_without_them_are_more_probable(beam_size, lively):
    config = GenerationConfig(beam_size=beam_size, max_length=20, precision="fp32")
    for seed in range(4):
        model, source = lively(seed, vocab_size=50, end=3.0), [5, 9, 12, 2]
        assert generate(model, [source], config)[0].best.is_finished
        output = generate(model, [Request(source, must=[[49]])], config)[0]
        assert output.best.is_finished and 49 in output.best.ids


def test_a_narrow_beam_meets_every_phrase_and_leaves_other_rows_alone(lively, sources_of):
    model, config = lively(2), GenerationConfig(beam_size=4, batch_rows=5, precision="fp32")
    sources = sources_of(12)
    free = generate(model, sources, config)
    phrases = [[[7, 8], [12]], [[3, 3, 4]], [[5], [6], [9, 10]]]
    asked = [Request(source, must=phrases[row % 3] if row % 2 else ()) for row, source in enumerate(sources)]
    for row, (request, output) in enumerate(zip(asked, generate(model, asked, config), strict=True)):
        assert output.error is None
        assert all(contains(output.best.ids, phrase) for phrase in request.must)
        if not request.must:
            assert output == free[row]


def test_exact_stopping_is_earlier_than_the_longest_length_and_changes_nothing(lively, sources_of, monkeypatch):
    from tfray.generation.beam import Beam

    model, sources = lively(5, end=1.2), sources_of(10)
    config = GenerationConfig(beam_size=4, n_best=2, length_penalty=0.0, precision="fp32")
    steps = []
    advance, done_slots = Beam.advance, Beam.done_slots

    def counted(self, *rest):
        steps.append(self.board.rows)
        return advance(self, *rest)

    def at_limit(self):
        return [slot for slot in done_slots(self) if self.board.taken[slot] >= int(self.board.limits[slot])]

    monkeypatch.setattr(Beam, "advance", counted)
    early = generate(model, sources, config)
    taken = sum(steps)
    monkeypatch.setattr(Beam, "done_slots", at_limit)
    assert generate(model, sources, config) == early
    assert taken < sum(steps) - taken


CONTRADICTIONS = [
    dict(n_best=5),
    dict(temperature=0.7),
    dict(top_k=3),
    dict(search="sample", coverage_penalty=1.0),
    dict(coverage_penalty=0.4, beam_size=1),
    dict(search="sample", n_best=2),
    dict(search="mbr", samples=1),
    dict(min_length=9, max_length=9),
    dict(min_length_ratio=3.0),
    dict(suppress_tokens=[2]),
    dict(top_p=0.0, search="sample"),
    dict(min_p=1.5, search="sample"),
    dict(repetition_penalty=0.0),
    dict(repetition_penalty=1e-40),
    dict(repetition_penalty=1e308),
    dict(beam_size=0),
    dict(memory_gb=-1.0),
]


@pytest.mark.parametrize("options", CONTRADICTIONS, ids=str)
def test_contradictory_options_are_refused_by_name(options):
    with pytest.raises(InputError, match=r"^generation\.(" + "|".join(options) + ")="):
        GenerationConfig(**options)


def test_suppressed_ids_must_be_of_the_vocabulary(lively, sources_of):
    assert generate(lively(0), sources_of(1), GenerationConfig(suppress_tokens=[14]))[0].error is None
    with pytest.raises(InputError, match=r"^generation\.suppress_tokens=\[3, 15\] .*ends at 14"):
        generate(lively(0), sources_of(1), GenerationConfig(suppress_tokens=[3, 15]))


def test_every_option_has_a_help_text():
    import inspect
    import re

    text = inspect.getsource(GenerationConfig)
    for name in asdict(GenerationConfig()):
        assert re.search(rf'^    {name}: .*\n    """', text, re.M), name


def test_limits_follow_from_the_source_and_end_at_the_models_longest(lively, sources_of):
    sources = sources_of(12)
    config = GenerationConfig(beam_size=2, max_length_ratio=1.5, max_length_extra=2, precision="fp32")
    reached = set()
    for source, output in zip(sources, generate(lively(2, max_length=11, end=0.0), sources, config), strict=True):
        limit = min(math.ceil(1.5 * len(source)) + 2, 11)
        best = output.best
        assert len(best.ids) + 1 <= limit if best.is_finished else len(best.ids) == limit
        assert output.hit_max_length == (not best.is_finished)
        reached.add(best.is_finished)
    assert reached == {True, False}
