"""Steps as graphs: captured where shapes come again, and given up where they fail, differ or do not pay.

Without a GPU a stand-in captures: it runs the step again over the same memory, as a graph does.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tfray.config import GenerationConfig
from tfray.generation import graphs
from tfray.generation.generate import generate
from tfray.generation.network import Network

SEARCHES = [
    dict(beam_size=1),
    dict(beam_size=3, n_best=2),
    dict(beam_size=2, coverage_penalty=0.5),
    dict(search="sample", samples=2),
]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs on a CPU; returns how often each was replayed."""
    replayed: list[int] = []

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        run()
        number = len(replayed)
        replayed.append(0)

        def replay() -> None:
            replayed[number] += 1
            run()

        return replay

    monkeypatch.setattr(Network, "kernels", lambda *rest: None)  # as on a GPU
    monkeypatch.setattr(graphs, "DEVICES", {"cpu"})
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "seconds", lambda work: 1.0 if work.__name__ == "replay" else 2.0)
    return replayed


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("rotary", [False, True])
def test_graphs_give_what_steps_give(search: dict, rotary: bool, lively, sources_of, captured: list[int], monkeypatch):
    options = {"positions": "rotary"} if rotary else {}
    sources, config = sources_of(60), GenerationConfig(**search, batch_rows=8)
    expected = generate_plainly(Network(lively(2, max_length=60, end=0.1, **options)), sources, config, monkeypatch)
    found = generate(Network(lively(2, max_length=60, end=0.1, **options)), sources, config)
    assert found == expected
    assert len(captured) > 1 and sum(captured) > 10 * len(captured), "shapes that come again are captured once"


def generate_plainly(network: Network, sources: Any, config: GenerationConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "DEVICES", set())
        return generate(network, sources, config)


@pytest.mark.parametrize("fault", ["fails", "does nothing", "is slow"])
def test_graphs_that_do_not_serve_are_given_up_at_once(fault: str, lively, sources_of, captured, monkeypatch):
    sources, config = sources_of(40), GenerationConfig(beam_size=2, batch_rows=8)
    network = Network(lively(2))
    expected = generate_plainly(network, sources, config, monkeypatch)
    tried = []

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        tried.append(run)
        if fault == "fails":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        run()  # what "does nothing" has left of this must not count as its answer
        return run if fault == "is slow" else lambda: None

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "seconds", lambda work: 1.0)
    assert generate(network, sources, config) == expected
    assert network.graphs_pay is False and len(tried) == 1


class LastingPool:
    """torch.cuda's part in captures, which refuses a memory pool once all of its graphs are gone."""

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet = weakref.WeakSet()
        self.is_used = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replay = type("CUDAGraph", (), {"replay": lambda self: None})
        for name, stand_in in (
            ("CUDAGraph", replay),
            ("graph", self.graph),
            ("graph_pool_handle", lambda: "pool"),
            ("Stream", lambda device: "stream"),
            ("current_device", lambda: 0),
        ):
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: str, stream: str) -> Iterator[None]:
        if self.is_used and not self.graphs:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.is_used = True
        self.graphs.add(graph)
        yield


def test_the_next_search_captures_after_all_graphs_of_the_last_one_are_gone(monkeypatch: pytest.MonkeyPatch):
    LastingPool().install(monkeypatch)
    monkeypatch.setattr(graphs, "place_of", functools.cache(graphs.place_of.__wrapped__))
    for _ in range(3):
        replay = graphs.capture(lambda: None)
        replay()
        del replay


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("search", SEARCHES)
def test_graphs_give_what_steps_give_on_a_gpu(search: dict, lively, sources_of, monkeypatch):
    sources, config = sources_of(200), GenerationConfig(**search, batch_rows=16)
    network = Network(lively(2, max_length=60, end=0.1).cuda())
    expected = generate_plainly(network, sources, config, monkeypatch)
    monkeypatch.setattr(graphs, "GAIN", 0.0)
    found = generate(network, sources, config)
    assert network.graphs_pay
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= 0.99 * len(sources)
