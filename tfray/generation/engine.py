"""The engine: rows enter slots, every step extends all of them by a token, rows that are done make room.

    waiting rows, the longest first  ->  encoded in chunks  ->  slots  ->  done: out at once
                                                                 ^  |
                                                                 step: network -> rules -> search

The batch stays full as long as rows wait; then it shrinks. A row's answer does not depend on its
companions: masks are exact, and on a CPU so are the kernels (see `linear`).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.beam import Beam
from tfray.generation.board import Board
from tfray.generation.budget import SHORTAGES, is_shortage, plan_groups, recover
from tfray.generation.cache import CacheShape, SlotCache, TensorCache, round_up
from tfray.generation.graphs import GraphedSteps, has_graphs
from tfray.generation.network import Network
from tfray.generation.paged import PagedCache
from tfray.generation.processors import NextTokens, next_tokens
from tfray.generation.program import Program, can_be_program
from tfray.generation.rows import Hypothesis, Request, longest_target
from tfray.generation.single import Single

CHUNK_TOKENS = 4096


class Encoded(NamedTuple):
    """A row that is ready to enter: its number, request, and keys and values of its source for each network."""

    row: int
    request: Request
    keys_values: list[Tensor]


class Engine:
    """Networks that decide together, and a configuration."""

    def __init__(self, networks: Sequence[Network], config: GenerationConfig) -> None:
        self.networks, self.config = list(networks), config
        self.width = config.width
        self.device = self.networks[0].device

    @torch.inference_mode()
    def run(self, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, list[Hypothesis] | None]]:
        """Yield (row, hypotheses) in the order in which rows are done; None where a row alone finds no memory.

        All requests must be sound.
        """
        ordered = sorted(requests, key=lambda item: (-len(item[1].source), item[0]))
        halvings = 0
        for group in plan_groups(ordered, self.networks, self.config, self.width):
            left, slots = dict(group.rows), max(1, group.slots >> halvings)
            while left:
                try:
                    for row, hypotheses in Batch(self, min(slots, len(left)), list(left.items())).run():
                        del left[row]
                        yield row, hypotheses
                except SHORTAGES as error:
                    if not is_shortage(error):
                        raise
                if not left:
                    continue
                recover(self.networks[0], slots)
                if slots == 1:  # rows go through one slot in their order
                    alone = next(iter(left))
                    del left[alone]
                    yield alone, None
                else:
                    slots, halvings = slots // 2, halvings + 1


class Search(Protocol):
    """What extends the hypotheses of all rows in slots, token by token."""

    def admit(self, slots: list[int]) -> None:
        """Begin rows in these slots."""

    def advance(self, found: NextTokens, attention_weights: Tensor) -> tuple[Tensor | None, list[int]]:
        """Extend every hypothesis by a token; return each one's parent (rows, width), None where each is its own, and
        the slots of rows that are done."""
        ...

    def finish(self, slots: list[int]) -> list[list[Hypothesis]]:
        """Return the hypotheses of rows that are done."""
        ...

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move what is kept outside the board's tensors to other slots."""


def step_of(network: Network, cache: SlotCache) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return Network.step over a cache, in the way that costs least between its kernels: from ids (rows, width) to
    logits, which the next step may write over, and attention to the source."""
    if isinstance(cache, TensorCache) and has_graphs(network.device):
        return GraphedSteps(network, cache).step
    if isinstance(cache, PagedCache) and can_be_program(network):
        return Program(network, cache).step
    return functools.partial(network.step, cache=cache)


class Batch:
    """One run of the slots over a group of rows, longest first."""

    def __init__(self, engine: Engine, slots: int, rows: list[tuple[int, Request]]) -> None:
        self.networks, self.config, self.slots = engine.networks, engine.config, slots
        self.waiting, self.encoded = deque(rows), deque[Encoded]()
        longest = min(network.architecture.max_length for network in self.networks)
        source = max(len(request.source) for _, request in rows)
        self.board = Board(slots, engine.width, longest, self.config, engine.device)
        self.search: Search = (
            Beam(self.board, self.config, round_up(source))
            if self.config.is_beam_search
            else Single(self.board, self.config)
        )
        target = longest_target(source, longest, self.config)
        self.caches = [self.cache_of(network, engine.width, source, target) for network in self.networks]
        self.steps = [step_of(network, cache) for network, cache in zip(self.networks, self.caches, strict=True)]

    def cache_of(self, network: Network, width: int, source: int, target: int) -> SlotCache:
        """Return a network's cache: that of the kernels where they serve."""
        shape = CacheShape(self.slots, width, source, target, len(network.decoder), network.heads, network.head_dim)
        kernels = network.cache_kernels(self.config)
        like = network.embedding.new_empty(0, dtype=network.cache_dtype(kernels))
        return TensorCache(shape, like) if kernels is None else PagedCache(shape, like, kernels)

    def run(self) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Yield (row, hypotheses) in the order in which rows are done."""
        self.fill(list(range(self.slots)))
        while self.board.rows:
            logits, attention_weights = self.step()
            parents, done = self.search.advance(next_tokens(logits, self.board, self.config), attention_weights)
            for cache in self.caches:
                cache.end_step(parents)
            if done:
                numbers = [self.board.row_of[slot] for slot in done]
                yield from zip(numbers, self.search.finish(done), strict=True)
                self.fill(done)

    def step(self) -> tuple[Tensor, Tensor]:
        """Return the next token's logits (rows x width, vocab), and the attention to the source."""
        last = self.board.last[: self.board.rows]
        found = [step(last) for step in self.steps]
        if self.config.coverage_penalty:
            found = [(logits, weights.float().mean(1)) for logits, weights in found]
        if len(found) == 1:
            return found[0]
        # Several networks: the mean of their probabilities.
        log_probs = torch.stack([logits.float().log_softmax(-1) for logits, _ in found])
        weights = [weights for _, weights in found]
        mean_weights = torch.stack(weights).mean(0) if self.config.coverage_penalty else weights[0]
        return log_probs.logsumexp(0) - torch.tensor(float(len(found))).log(), mean_weights

    def fill(self, free: list[int]) -> None:
        """Let waiting rows into free slots; close up those that stay free."""
        for cache in self.caches:
            cache.release(free)
        count = min(len(free), len(self.waiting) + len(self.encoded))
        entering = [self.next_encoded() for _ in range(count)]
        if entering:
            self.enter(free[:count], entering)
        rows = max(self.board.rows, max(free[:count], default=-1) + 1)
        empty = {slot for slot in free[count:] if slot < rows}
        self.board.rows = rows - len(empty)
        if empty:
            self.close_up(empty, rows)

    def enter(self, slots: list[int], entering: list[Encoded]) -> None:
        requests = [encoded.request for encoded in entering]
        for number, cache in enumerate(self.caches):
            cache.admit(slots, [encoded.keys_values[number] for encoded in entering])
        self.board.admit(slots, [encoded.row for encoded in entering], requests)
        self.search.admit(slots)

    def close_up(self, empty: set[int], rows: int) -> None:
        """Move the last rows into empty slots, so that those in use are the first ones."""
        stay = rows - len(empty)
        targets = sorted(slot for slot in empty if slot < stay)
        sources = [slot for slot in range(stay, rows) if slot not in empty]
        if sources:
            for cache in self.caches:
                cache.move(sources, targets)
            self.board.move(sources, targets)
            self.search.move(sources, targets)

    def next_encoded(self) -> Encoded:
        """Return the next row to enter; rows are encoded many at a time, ahead of their entry, but long ones alone:
        attention without kernels takes memory by the square of their length."""
        if not self.encoded:
            longest = len(self.waiting[0][1].source)
            count = min(len(self.waiting), max(1, CHUNK_TOKENS // longest), self.slots)
            self.encode([self.waiting.popleft() for _ in range(count)])
        return self.encoded.popleft()

    def encode(self, rows: list[tuple[int, Request]]) -> None:
        keys_values = []
        for network in self.networks:
            memory, lengths = network.encode([request.source for _, request in rows])
            keys_values.append(network.project_memory(memory).split(lengths))
        for place, (row, request) in enumerate(rows):
            self.encoded.append(Encoded(row, request, [parts[place] for parts in keys_values]))
