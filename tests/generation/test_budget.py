"""Where memory runs out, fewer rows are tried at a time, and each answer is what it would have been."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation import budget
from tfray.generation.available import available_bytes
from tfray.generation.budget import DRAW_BYTES, plan_groups, row_bytes
from tfray.generation.draws import draw
from tfray.generation.engine import Batch, Engine
from tfray.generation.generate import generate
from tfray.generation.network import Network
from tfray.generation.paged import PagedCache
from tfray.generation.rows import Request, longest_target
from tfray.generation.scoring import align, classify, embed, score

BEAM = GenerationConfig(beam_size=2)


@pytest.mark.parametrize("search", [dict(beam_size=1), dict(beam_size=3, n_best=2), dict(search="sample", samples=2)])
def test_where_memory_runs_out_half_as_many_rows_are_tried_and_nothing_is_lost(search, lively, sources_of, monkeypatch):
    network, sources, config = Network(lively(2)), sources_of(40), GenerationConfig(**search, batch_rows=16)
    expected = generate(network, sources, config)
    step = Batch.step

    def short(self):
        if self.board.rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return step(self)

    monkeypatch.setattr(Batch, "step", short)
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
    monkeypatch.setattr(Batch, "step", lambda *rest: (_ for _ in ()).throw(RuntimeError("odd")))
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


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\nCached: 4900 kB\n"
GROUPS: list[tuple[str, dict[str, str], int]] = [
    ("0::/", {}, 5000),
    ("0::/a/b", {"a/b/memory.max": "max"}, 5000),
    (
        "0::/a/b",
        {
            **{"a/memory.max": str(3000 * 1024), "a/memory.current": str(2500 * 1024)},
            **{"a/memory.stat": f"active_file 7\ninactive_file {1000 * 1024}\n", "a/b/memory.max": "max"},
        },
        1500,
    ),
    (
        "0::/outside",
        {"memory.max": str(800 * 1024), "memory.current": str(300 * 1024), "memory.stat": "inactive_file 0"},
        500,
    ),
    (
        "5:cpu,cpuacct:/a\n4:memory:/a",
        {
            **{"memory/a/memory.limit_in_bytes": str(2000 * 1024), "memory/a/memory.usage_in_bytes": str(900 * 1024)},
            "memory/a/memory.stat": f"inactive_file 0\ntotal_inactive_file {100 * 1024}\n",
        },
        1200,
    ),
    (
        "4:memory:/a",
        {
            **{"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "4096"},
            "memory/a/memory.stat": "total_inactive_file 0",
        },
        5000,
    ),
    ("0::/a", {"a/memory.max": "4096", "a/memory.current": "8192", "a/memory.stat": ""}, 0),
]


@pytest.mark.parametrize("membership, files, expected", GROUPS)
def test_available_is_what_the_machine_or_the_tightest_limit_leaves(membership, files, expected, tmp_path):
    write_files(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": membership + "\n"})
    write_files(tmp_path / "groups", files)
    assert available_bytes(tmp_path / "proc", tmp_path / "groups") == expected * 1024


def test_available_is_more_than_unused_pages_and_less_than_all():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes() < total
    assert available_bytes(Path("/nowhere"), Path("/nowhere")) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("coverage", [0.0, 0.1])  # with it, torch's cache serves
def test_a_cache_holds_no_more_than_was_estimated(coverage, precision, lively, sources_of):
    network = Network(lively(2, max_length=200, end=-2.0, d_model=64), precision)
    config = GenerationConfig(beam_size=2, coverage_penalty=coverage, max_length_ratio=5.0)
    rows = [(row, Request(source)) for row, source in enumerate(sorted(sources_of(40), key=len, reverse=True))]
    batch = Batch(Engine([network], config), 10, rows)
    assert len([hypotheses for _, hypotheses in batch.run()]) == 40
    (cache,) = batch.caches
    chunks = cache.pages.chunks if isinstance(cache, PagedCache) else []
    tensors = [part for part in vars(cache).values() if isinstance(part, torch.Tensor)]
    held = sum(tensor.nbytes for tensor in [*tensors, *chunks])
    longest = len(rows[0][1].source)
    estimate = 10 * row_bytes(longest, longest_target(longest, 200, config), 2, [network], config)
    assert estimate / 4 < held < estimate


def test_models_on_one_machine_share_what_is_free_and_a_row_gets_the_same_answer(lively, sources_of, monkeypatch):
    network, sources = Network(lively(2)), sources_of(40)
    config = GenerationConfig(beam_size=2, batch_rows=64)
    requests = list(enumerate(map(Request, sources)))
    expected = generate(network, sources, config)
    monkeypatch.setattr(budget, "available_bytes", lambda: 40 * row_bytes(10, 40, 2, [network], BEAM))
    alone = [group.slots for group in plan_groups(requests, [network], config, 2)]
    network.models_here = 40
    shared = [group.slots for group in plan_groups(requests, [network], config, 2)]
    assert max(shared) < max(alone) // 10
    assert generate(network, sources, config) == expected


def test_a_long_source_is_judged_by_the_pieces_that_the_search_sees(lively):
    network = Network(lively(2, max_length=64))
    source = [*[5] * 66, 2]  # in two pieces of 34
    budget = row_bytes(34, 64, 2, [network], BEAM) / 2**30
    config = GenerationConfig(beam_size=2, long_sources="split", memory_gb=budget, max_length_ratio=1.0)
    assert row_bytes(64, 64, 2, [network], BEAM) / 2**30 > budget
    assert generate(network, [source], config)[0].error is None


@pytest.mark.parametrize("options", [dict(), dict(top_k=5, top_p=0.9, min_p=0.01)], ids=str)
def test_drawing_takes_no_more_memory_than_is_estimated(options):
    log_probs, chance = torch.randn(64, 4096).log_softmax(-1), torch.rand(64, dtype=torch.float64)
    config = GenerationConfig(search="sample", **options)
    with torch.profiler.profile(profile_memory=True) as profile:
        draw(log_probs, chance, config)
    taken, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    assert DRAW_BYTES / 4 < peak / log_probs.numel() <= DRAW_BYTES
