"""Where memory runs out, fewer rows are tried at a time, and each answer is what it would have been."""

from __future__ import annotations

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation.generate import generate
from tfray.generation.network import Network
from tfray.generation.scoring import align, classify, embed, score


@pytest.mark.parametrize("search", [dict(beam_size=1), dict(beam_size=3, n_best=2), dict(search="sample", samples=2)])
def test_where_memory_runs_out_half_as_many_rows_are_tried_and_nothing_is_lost(search, lively, sources_of, monkeypatch):
    network, sources, config = Network(lively(2)), sources_of(40), GenerationConfig(**search, batch_rows=16)
    expected = generate(network, sources, config)
    step = Network.step

    def short(self, ids, cache):
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return step(self, ids, cache)

    monkeypatch.setattr(Network, "step", short)
    assert generate(network, sources, config) == expected
    assert network.shortages == 2  # 16, 8, 4


@pytest.mark.parametrize("split", [False, True])
def test_a_row_that_finds_no_memory_alone_gets_an_error_and_the_others_finish(split, lively, sources_of, monkeypatch):
    network, sources = Network(lively(2)), [*sources_of(20), [5] * 23 + [2]]
    if split:
        sources[-1] = [5] * 40 + [2]
    config = GenerationConfig(beam_size=2, batch_rows=8, long_sources="split")
    expected = generate(network, sources, config)
    encode = Network.encode

    def short(self, sources):
        if max(map(len, sources)) > 18:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return encode(self, sources)

    monkeypatch.setattr(Network, "encode", short)
    found = generate(network, sources, config)
    assert found[-1].error is not None and found[-1].error.startswith("out_of_memory: the row alone")
    assert found[:-1] == expected[:-1]


def test_an_error_that_is_none_of_memory_passes_on(lively, sources_of, monkeypatch):
    network = Network(lively(2))
    monkeypatch.setattr(Network, "step", lambda *rest: (_ for _ in ()).throw(RuntimeError("odd")))
    with pytest.raises(RuntimeError, match="odd"):
        generate(network, sources_of(3), GenerationConfig())


def test_scores_classes_vectors_and_alignments_are_had_with_little_memory_too(lively, sources_of, monkeypatch):
    network, sources, targets = Network(lively(2)), sources_of(20), sources_of(20, seed=9)

    def everything() -> list[torch.Tensor]:
        return [
            *(torch.tensor(each.token_log_probs) for each in score(network, sources, targets)),
            classify(network, sources, [4, 5], 20),
            embed(network, sources),
            *align(network, sources, targets),
        ]

    expected, encode = everything(), Network.encode

    def short(self, sources):
        if len(sources) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, sources)

    monkeypatch.setattr(Network, "encode", short)
    torch.testing.assert_close(everything(), expected, atol=1e-4, rtol=0)
    assert network.shortages == 4 * 3  # 20, 10, 10
    monkeypatch.setattr(Network, "encode", lambda *rest: (_ for _ in ()).throw(MemoryError("none")))
    with pytest.raises(MemoryError):
        embed(network, sources)
