"""How many rows fit at a time: an estimate of a row's bytes, and the groups of rows that follow from it.

Where the estimate was too low, memory runs out; then half as many rows are tried at a time.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tfray.config import GenerationConfig
from tfray.generation import native
from tfray.generation.available import available_bytes
from tfray.generation.cache import FIRST_LENGTH, round_up
from tfray.generation.network import Network
from tfray.generation.rows import Request, longest_target

logger = logging.getLogger(__name__)

SHARE = 0.5  # of the memory that is free, for slots; the rest is for weights' copies, chunks and the allocator
MOST_GB = 1e9  # more than any machine has; the bytes of more may be no number any more
DRAW_BYTES = 64  # for each token of the vocabulary: probabilities in fp64, their order, their sums

SHORTAGES = (MemoryError, RuntimeError)  # torch.OutOfMemoryError is one of the latter, and so is what a CPU raises


class RowGroup(NamedTuple):
    """Rows that run through the same slots."""

    slots: int
    rows: list[tuple[int, Request]]


def row_bytes(source: int, target: int, width: int, networks: Sequence[Network], config: GenerationConfig) -> int:
    """Return about the bytes that a row of so many source and target tokens needs while it has a slot."""
    total = 0
    for network in networks:
        shape, size = network.architecture, network.embedding.element_size()
        kernels = network.cache_kernels(config)
        kept = network.cache_dtype(kernels).itemsize
        if kernels is None:
            target_length = max(FIRST_LENGTH, 2 * round_up(target))  # while a cache grows there are two
            bias = 2 * width * target_length * width * size
        else:
            target_length, bias = round_up(target) + native.page(), 0  # some pages are free
        numbers = 2 * len(network.decoder) * shape.d_model  # of a token: keys and values
        cache = numbers * kept * (round_up(source) + target_length * width)
        waiting = numbers * size * source
        scores = width * shape.vocab_size * (size + 8 + DRAW_BYTES * (config.search != "beam"))
        total += cache + waiting + bias + scores + width * shape.d_ff * 8
    return total


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_bytes()


def budget_bytes(config: GenerationConfig, device: torch.device, models: int = 1) -> int:
    """Return the bytes that slots may take: memory_gb, or half of what is free, shared by so many models."""
    wanted = min(config.memory_gb, MOST_GB)
    return int(wanted * 2**30) if wanted else int(SHARE * free_bytes(device) / models)


def most_rows(batch_rows: int, device: torch.device) -> int:
    """Return how many rows are worked on together at most: as many as are asked for, or as keep a device busy."""
    return batch_rows or (128 if device.type == "cpu" else 512)


def slots_for(source: int, networks: Sequence[Network], config: GenerationConfig, width: int, budget: int) -> int:
    """Return how many rows of a source length fit at a time, 0 where not even one does."""
    longest = min(network.architecture.max_length for network in networks)
    target = longest_target(source, longest, config)
    needed = row_bytes(source, target, width, networks, config)
    slots = min(most_rows(config.batch_rows, networks[0].device), budget // needed)
    if config.max_tokens:
        # A single row may be longer than the budget of a batch.
        slots = min(slots, max(1, config.max_tokens // (round_up(source) + width * target)))
    return slots


def plan_groups(
    ordered: Sequence[tuple[int, Request]], networks: Sequence[Network], config: GenerationConfig, width: int
) -> Iterator[RowGroup]:
    """Yield groups of rows, given the longest first: a new one where twice as many fit at a time."""
    budget = budget_bytes(config, networks[0].device, networks[0].models_here)
    rows: list[tuple[int, Request]] = []
    slots = 0
    for item in ordered:
        fitting = slots_for(len(item[1].source), networks, config, width, budget)
        if rows and fitting >= 2 * slots:
            yield RowGroup(min(slots, len(rows)), rows)
            rows = []
        if not rows:
            slots = max(1, fitting)
        rows.append(item)
    if rows:
        yield RowGroup(min(slots, len(rows)), rows)


def is_shortage(error: Exception) -> bool:
    """Say whether an error means that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def recover(network: Network, rows: int) -> None:
    """Give back what can be after memory ran out for so many rows; the error must not be held any more, nor its
    frames with it."""
    network.shortages += 1
    logger.warning("memory ran out with %d rows at a time; trying half as many", rows)
    gc.collect()
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
