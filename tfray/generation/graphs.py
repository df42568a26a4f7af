"""Steps as CUDA graphs: a step is some hundred small kernels, and a GPU waits for each to be started.

A graph holds one step for one set of shapes, over the same memory; it is captured when the shapes come again and
again, as they do while the slots are full. The first graph of a network is measured against the step that it stands
for: if it cannot be captured, answers otherwise or is not faster, the network goes on without.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfray.generation.cache import TensorCache
from tfray.generation.network import Network

logger = logging.getLogger(__name__)

USES_BEFORE = 3  # of shapes, before they are worth a graph
MEASURED_STEPS = 5
GAIN = 1.05  # from which a graph pays
DEVICES = {"cuda"}
TOLERANCE = 0.02  # of the largest logit: the kernels of a graph may be other ones

Shapes = tuple[int, ...]
Replay = Callable[[], None]


class Graph(NamedTuple):
    """A captured step, and where it writes."""

    replay: Replay
    logits: Tensor
    attention_weights: Tensor


def has_graphs(device: torch.device) -> bool:
    """Say whether a device records steps as graphs."""
    return device.type in DEVICES


class GraphedSteps:
    """The steps of one network over one cache."""

    def __init__(self, network: Network, cache: TensorCache) -> None:
        self.network, self.cache = network, cache
        self.ids = torch.zeros(cache.shape.slots, cache.shape.width, dtype=torch.long, device=network.device)
        self.uses: Counter[Shapes] = Counter()
        self.graphs: dict[Shapes, Graph] = {}
        self.buffers: tuple[Tensor, ...] | None = None

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what Network.step does, by a graph where there is one."""
        if self.network.graphs_pay is False:
            return self.network.step(ids, self.cache)
        rows = len(ids)
        self.ids[:rows] = ids
        shapes = self.shapes(rows)
        if shapes not in self.graphs:
            self.uses[shapes] += 1
            if self.uses[shapes] <= USES_BEFORE or not self.capture(shapes):
                return self.network.step(ids, self.cache)
        graph = self.graphs[shapes]
        graph.replay()
        return graph.logits, graph.attention_weights

    def shapes(self, rows: int) -> Shapes:
        """Return all that a step's shapes and places in memory follow from."""
        cache = self.cache
        cache.reach(rows)
        self.network.reach(cache.capacity)
        return rows, cache.length, cache.source, cache.capacity, len(self.network.tables[0])

    def capture(self, shapes: Shapes) -> bool:
        """Capture a step, unless that fails or does not pay."""
        try:
            with current(self.network.device):
                graph = self.record(shapes[0])
                if self.network.graphs_pay is None:
                    self.network.graphs_pay = self.pays(graph, shapes[0])
        except RuntimeError as error:
            logger.warning("generation goes on without CUDA graphs: %s", str(error).partition("\n")[0])
            self.network.graphs_pay = False
            return False
        if self.network.graphs_pay:
            self.graphs[shapes] = graph
        return self.network.graphs_pay

    def record(self, rows: int) -> Graph:
        """Return a step as a graph."""
        ids, (logits, attention_weights) = self.ids[:rows], self.outputs(rows)

        def run() -> None:
            for place, found in zip((logits, attention_weights), self.network.step(ids, self.cache), strict=True):
                place.copy_(found)

        return Graph(capture(run), logits, attention_weights)

    def outputs(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return where a step of so many rows writes logits and attention weights; all graphs share the place, for they
        share their memory, too: the next one may use what the last one left."""
        cache, network = self.cache, self.network
        if self.buffers is None:
            logits = self.ids.numel(), network.architecture.vocab_size
            attention_weights = cache.shape.slots, network.heads, cache.shape.width, cache.memory_bias_buffer.shape[-1]
            self.buffers = tuple(
                torch.empty(shape, dtype=network.dtype, device=network.device) for shape in (logits, attention_weights)
            )
        logits, attention_weights = self.buffers
        return logits[: rows * cache.shape.width], attention_weights[:rows, ..., : cache.source]

    def pays(self, graph: Graph, rows: int) -> bool:
        """Say whether a graph gives what the step does, and sooner; both may run again, for they begin alike."""
        ids = self.ids[:rows]
        expected = self.network.step(ids, self.cache)[0].float()
        graph.logits.fill_(math.nan)  # what the capture itself left there must not count
        graph.replay()
        limit = TOLERANCE * float(expected.abs().max())
        if not torch.allclose(graph.logits.float(), expected, rtol=0, atol=limit):
            logger.warning("generation goes on without CUDA graphs: they give other results on this device")
            return False
        plain = seconds(lambda: self.network.step(ids, self.cache))
        graphed = seconds(graph.replay)
        logger.debug("a step takes %.2f ms, as a CUDA graph %.2f ms", 1e3 * plain, 1e3 * graphed)
        return plain > GAIN * graphed


def capture(run: Callable[[], None]) -> Replay:
    """Return what repeats a function's work on the GPU, as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    pool, stream, _ = place_of(torch.cuda.current_device())
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        run()
    return graph.replay


@functools.cache
def place_of(device: int) -> tuple[Any, Any, Any]:
    """Return the memory pool of this process' graphs on a GPU, for one runs at a time, and the stream that captures:
    the one that torch keeps belongs to the GPU of the first graph. With them a graph that stays: once all graphs of a
    pool are gone, with a search, torch may refuse the pool to the next one's."""
    pool, stream, keeper = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.graph(keeper, pool=pool, stream=stream):
        torch.zeros(1, device=torch.device("cuda", device))
    return pool, stream, keeper


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Make a GPU the current one: on another one's stream nothing is captured, and torch only warns."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def seconds(work: Callable[[], object]) -> float:
    """Return how long work takes, of several times the shortest."""
    times = []
    for _ in range(MEASURED_STEPS):
        synchronize()
        begun = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
