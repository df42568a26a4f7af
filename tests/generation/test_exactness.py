"""A row's answer is its own, and cached decoding is full decoding, to the last bit on a CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation import native
from tfray.generation.cache import CacheShape, TensorCache
from tfray.generation.generate import generate, prepare
from tfray.generation.linear import BlockedLinear, HalfLinear, PlainLinear, QuantizedLinear
from tfray.generation.network import Network
from tfray.generation.paged import PagedCache
from tfray.generation.panels import PanelByteLinear, PanelLinear
from tfray.generation.products import works
from tfray.generation.program import Program, can_be_program
from tfray.generation.rows import Request
from tfray.generation.scoring import classify, embed, score
from tfray.generation.tiled import TiledByteLinear, TiledHalfLinear

SHAPES: list[dict[str, Any]] = [
    {},
    dict(positions="rotary"),
    dict(norm_position="post"),
    dict(norm="rms", activation="swiglu"),
    dict(activation="gelu", d_model=64),
    dict(norm="rms"),
]
SEARCHES: list[dict[str, Any]] = [
    dict(beam_size=1),
    dict(beam_size=3, n_best=2),
    dict(search="sample", samples=2, seed=4),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[4]], ids=str)
def test_results_do_not_depend_on_order_budget_or_companions(shape, precision, search, lively, sources_of):
    network = Network(lively(2, **shape), precision)
    sources = sources_of(30, longest=20)
    expected = generate(network, sources, GenerationConfig(**search))
    order = random.Random(1).sample(range(len(sources)), len(sources))
    for budget in (dict(batch_rows=1), dict(max_tokens=512), dict(max_tokens=8000), dict(batch_rows=7)):
        chosen = order[:8] if budget == dict(batch_rows=1) else order
        requests = [Request(sources[row], number=row) for row in chosen]
        found = generate(network, requests, GenerationConfig(**search, **budget))
        assert [output.hypotheses for output in found] == [expected[row].hypotheses for row in chosen]
    assert len({tuple(output.best.ids) for output in expected}) > 4


@pytest.fixture(params=["autocast", "float64"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[AbstractContextManager]:
    """Yield what a notebook may have set for all of its torch."""
    if request.param == "autocast":
        yield torch.autocast("cpu", dtype=torch.bfloat16)
        return
    usual = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, usual)

        @contextmanager
        def doubles() -> Iterator[None]:
            torch.set_default_dtype(torch.float64)
            yield

        yield doubles()


@pytest.mark.parametrize("has_kernels", [True, False])
def test_results_do_not_depend_on_what_a_notebook_has_set_for_its_torch(
    has_kernels, surroundings, lively, sources_of, monkeypatch
):
    if not has_kernels:
        monkeypatch.setattr(native, "kernels", lambda device: None)
    model, config = lively(3, max_length=128), GenerationConfig(beam_size=3, coverage_penalty=0.1, precision="fp32")
    sources = [[*random.Random(1).choices(range(3, 15), k=110), 2], *sources_of(5)]
    targets = [source[:-1] for source in sources]

    def answers() -> list:
        network = prepare(model, config)
        found = generate(network, sources, config)
        assert network.tables[0].dtype == torch.float32
        classes, vectors = classify(network, sources, [4, 7], batch_rows=4), embed(network, sources)
        return [found, score(network, sources, targets), classes.tolist(), vectors.tolist()]

    expected = answers()
    with surroundings:
        assert answers() == expected


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", [SHAPES[0], dict(positions="rotary", d_model=48)], ids=str)
def test_long_sources_do_not_depend_on_their_companions_either(shape, precision, search, lively):
    network = Network(lively(2, max_length=160, **shape), precision)
    choose = random.Random(3)
    lengths = [1, 5, 96, 97, 112, 113, *choose.choices(range(90, 151), k=10)]
    sources = [[*choose.choices(range(3, 15), k=length - 1), 2] for length in lengths]
    expected = [embed(network, sources), generate(network, sources, GenerationConfig(**search, max_length=30))]
    for company in (1, 2, 5):
        for start in range(0, len(sources), company):
            rows = range(start, min(start + company, len(sources)))
            own = [sources[row] for row in rows]
            assert torch.equal(embed(network, own), expected[0][start : start + company])
            requests = [Request(sources[row], number=row) for row in rows]
            found = generate(network, requests, GenerationConfig(**search, max_length=30))
            assert found == expected[1][start : start + company]


@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def test_cached_decoding_equals_full_decoding_of_the_training_model(shape, width, is_paged, lively):
    model = lively(6, max_length=99, **shape)
    network, length = Network(model, "fp32"), 50  # the cache grows once
    sources = [[3, 4, 5, 6, 2], [7, 8, 2], [9, 2]]
    memory, lengths = network.encode(sources)
    keys_values = list(network.project_memory(memory).split(lengths))
    room = CacheShape(3, width, 5, length, 2, 2, network.head_dim)
    kernels = network.kernels() if is_paged else None
    if is_paged and kernels is None:
        pytest.skip("no C compiler")
    cache = TensorCache(room, network.embedding) if kernels is None else PagedCache(room, network.embedding, kernels)
    cache.admit([0, 1, 2], keys_values)
    torch.manual_seed(1)
    targets = torch.randint(3, 15, (3, width, length))
    targets[:, :, 0] = 1
    for position in range(length):
        logits, _ = network.step(targets[:, :, position], cache)
        for row, source in enumerate(sources):
            full = model(torch.tensor([source]).expand(width, -1), targets[row, :, : position + 1])[:, -1]
            found = logits.view(3, width, -1)[row]
            torch.testing.assert_close(found.log_softmax(-1), full.log_softmax(-1), atol=2e-3, rtol=1e-4)
        parents = torch.randint(0, width, (3, width))
        cache.end_step(parents if width > 1 else None)
        if width > 1:  # the past follows the parents; the token to come is each one's own
            past = targets[:, :, : position + 1].gather(1, parents[..., None].expand(-1, -1, position + 1))
            targets[:, :, : position + 1] = past


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@torch.inference_mode()
def test_a_program_of_kernel_calls_gives_the_steps_of_the_network_to_the_last_bit(
    norm_position, width, precision, lively
):
    network, length = Network(lively(6, max_length=40, norm_position=norm_position), precision), 20
    kernels = network.kernels()
    if kernels is None or not can_be_program(network):
        pytest.skip("no C compiler, or no kernels of this precision")
    sources = [[3, 4, 5, 6, 2], [7, 8, 2], [9, 2]]
    memory, lengths = network.encode(sources)
    room = CacheShape(3, width, 5, length, 2, 2, network.head_dim)
    like = network.embedding.new_empty(0, dtype=network.cache_dtype(kernels))
    caches = [PagedCache(room, like, kernels) for _ in range(2)]
    for cache in caches:
        cache.admit([0, 1, 2], list(network.project_memory(memory).split(lengths)))
    program = Program(network, caches[1])
    torch.manual_seed(1)
    targets = torch.randint(3, 15, (length, 3, width))
    targets[0] = 1
    for position, ids in enumerate(targets):
        rows = 3 if position < 12 else 2  # the last one is done
        expected, _ = network.step(ids[:rows], caches[0])
        found, weights = program.step(ids[:rows])
        assert torch.equal(found, expected) and not len(weights)
        parents = torch.randint(0, width, (rows, width)) if width > 1 else None
        for cache in caches:
            cache.end_step(parents)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_hypothesis_score_is_that_of_forced_decoding(shape, precision, beam_size, lively, sources_of):
    network, sources = Network(lively(3, **shape), precision), sources_of(20)
    config = GenerationConfig(beam_size=beam_size, n_best=min(2, beam_size), batch_rows=6)
    pairs = [
        (source, [*hypothesis.ids, *[2] * hypothesis.is_finished], hypothesis.score)
        for source, output in zip(sources, generate(network, sources, config), strict=True)
        for hypothesis in output.hypotheses
    ]
    found = score(network, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    # The compiled kernels compute both alike; torch's products depend on how many positions they see at once.
    limit = 1e-9 if network.kernels() else 1e-4
    differences = [abs(each.log_prob - pair[2]) for each, pair in zip(found, pairs, strict=True)]
    if precision == "fp32":
        assert max(differences) <= limit
    else:  # where sums differ by a bit, what is rounded after them may differ by more
        assert sum(differences) / len(differences) < 0.02 and max(differences) < 0.5


def test_a_long_hypothesis_score_is_that_of_forced_decoding_without_the_kernels_too(lively, monkeypatch):
    model, sources = lively(5, max_length=150, end=-1.0), [[3, 4, 5, 2], [7] * 120 + [2]]
    config = GenerationConfig(beam_size=2, max_length_extra=130, length_penalty=0.0)
    for limit in (1e-9, 1e-4):
        network = Network(model, "fp32")
        limit = limit if network.kernels() else 1e-4
        best = [output.best for output in generate(network, sources, config)]
        targets = [[*hypothesis.ids, *[2] * hypothesis.is_finished] for hypothesis in best]
        assert max(map(len, targets)) > 100
        scores = [each.log_prob for each in score(network, sources, targets)]
        assert scores == pytest.approx([hypothesis.score for hypothesis in best], abs=limit, rel=1e-6)
        monkeypatch.setattr(native, "kernels", lambda device: None)


def test_a_beam_of_one_is_greedy_search(lively, sources_of, monkeypatch):
    from tfray.generation import engine
    from tfray.generation.beam import Beam

    class OneBeam(Beam):
        def __init__(self, board, config):
            super().__init__(board, config, source=16)

    sources = sources_of(20)
    config = GenerationConfig(beam_size=1, batch_rows=6, early_stopping="beam", precision="fp32")
    for seed in range(3):
        model = lively(seed)
        greedy = generate(model, sources, config)
        monkeypatch.setattr(engine, "Single", OneBeam)
        beam = generate(model, sources, config)
        monkeypatch.undo()
        for one, other in zip(greedy, beam, strict=True):
            assert (one.best.ids, one.best.is_finished) == (other.best.ids, other.best.is_finished)
            assert one.best.score == other.best.score


def test_equal_scores_go_by_token_id_and_place(lively):
    """Tokens 5, 9 and 12 are one and the same to the model; so are their beginnings."""
    model = lively(0)
    with torch.no_grad():
        model.embedding.tokens.weight[9] = model.embedding.tokens.weight[5]
        model.embedding.tokens.weight[12] = model.embedding.tokens.weight[5]
        model.decoder_norm.bias += 4 * model.embedding.tokens.weight[5]
    for search in (dict(beam_size=1), dict(beam_size=4, n_best=4, length_penalty=0.0)):
        for output in generate(model, [[3, 4, 2], [7, 2], [6, 6, 2]], GenerationConfig(**search, precision="fp32")):
            assert 5 in output.best.ids
            assert not {9, 12} & set(output.best.ids)
            equal = [h.ids for h in output.hypotheses if h.ranking_score == output.best.ranking_score]
            assert equal == sorted(equal)


@pytest.mark.parametrize(
    "kind", [PanelLinear, BlockedLinear, QuantizedLinear, TiledHalfLinear, TiledByteLinear, PanelByteLinear]
)
@pytest.mark.parametrize("inputs, outputs", [(16, 48), (100, 300), (256, 256)])
def test_a_rows_product_does_not_depend_on_the_other_rows(kind, inputs, outputs):
    if not works(kind):
        pytest.skip("this processor has no such product")
    torch.manual_seed(0)
    linear = kind(torch.randn(outputs, inputs), torch.randn(outputs), "relu")
    states = torch.randn(200, inputs)
    whole = linear(states)
    for rows in (*range(1, 20), 31, 64, 129):
        assert torch.equal(linear(states[:rows]), whole[:rows])


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize(
    "kind, limit",
    [
        *((PanelLinear, 1e-4), (BlockedLinear, 1e-4), (HalfLinear, 0.1), (QuantizedLinear, 0.2)),
        *((TiledHalfLinear, 0.1), (TiledByteLinear, 0.2), (PanelByteLinear, 0.2)),
    ],
)
def test_every_kind_of_product_is_the_plain_one(kind, limit, activation):
    if not works(kind):
        pytest.skip("this processor has no such product")
    torch.manual_seed(0)
    weight, bias, states, residual = torch.randn(33, 64), torch.randn(33), torch.randn(7, 64), torch.randn(7, 33)
    found, expected = (each(weight, bias, activation) for each in (kind, PlainLinear))
    assert (found(states) - expected(states)).abs().max() < limit * 8
    if activation == "none":
        assert (found(states, residual) - expected(states, residual)).abs().max() < limit * 8
        assert (kind(weight, None, activation)(states) - states @ weight.T).abs().max() < limit * 8


def test_without_the_library_a_plain_product_is_chosen(monkeypatch, lively, sources_of):
    expected = generate(lively(1), sources_of(5), GenerationConfig(precision="fp32"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for precision in ("fp32", "int8"):
        network = prepare(lively(1), GenerationConfig(precision=precision))
        assert isinstance(network.output, PlainLinear)
        found = generate(network, sources_of(5), GenerationConfig())
        assert [output.best.ids for output in found] == [output.best.ids for output in expected]
