"""Ids in, ids out: batches by length, one search for each batch, results in the rows' order.

Knows torch, and nothing of text or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.beam import beam_search
from tfray.generation.greedy import greedy_search
from tfray.generation.hypothesis import Hypothesis
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, PAD_ID


@torch.inference_mode()
def generate(model: Transformer, sources: Sequence[list[int]], config: GenerationConfig) -> list[Hypothesis]:
    """Return the best hypothesis for each source; sources end with eos."""
    search = greedy_search if config.beam_size == 1 else beam_search
    results: list[Hypothesis | None] = [None] * len(sources)
    for rows in batches_by_length(sources, config.batch_rows):
        source_ids = pad([sources[row] for row in rows], device_of(model))
        limits = [longest_target(len(sources[row]), model, config) for row in rows]
        for row, hypothesis in zip(rows, search(model, source_ids, limits, config), strict=True):
            results[row] = hypothesis
    return [result for result in results if result is not None]


@torch.inference_mode()
def classify(model: Transformer, sources: Sequence[list[int]], label_ids: list[int], batch_rows: int) -> Tensor:
    """Return each source's probabilities over the labels from one decoder step, (sources, labels)."""
    probabilities = torch.empty(len(sources), len(label_ids))
    device = device_of(model)
    labels = torch.tensor(label_ids, device=device)
    for rows in batches_by_length(sources, batch_rows):
        memory = model.encode(pad([sources[row] for row in rows], device))
        begin = torch.full((len(rows), 1), BOS_ID, device=device)
        logits = model.project(model.decode(begin, memory)[:, 0])[:, labels]
        probabilities[rows] = logits.float().softmax(-1).cpu()
    return probabilities


def batches_by_length(sources: Sequence[list[int]], batch_rows: int) -> Iterator[list[int]]:
    """Yield row numbers of like length together, the longest first so that memory peaks at once."""
    order = sorted(range(len(sources)), key=lambda row: (-len(sources[row]), row))
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


def longest_target(source_length: int, model: Transformer, config: GenerationConfig) -> int:
    """Return the most tokens of a source's target, eos included."""
    wanted = math.ceil(config.max_length_ratio * source_length) + config.max_length_extra
    return min(wanted, model.architecture.max_length)


def pad(sources: list[list[int]], device: torch.device) -> Tensor:
    """Return sources padded at the right, (rows, longest)."""
    longest = max(map(len, sources))
    return torch.tensor([[*ids, *[PAD_ID] * (longest - len(ids))] for ids in sources], device=device)


def device_of(model: Transformer) -> torch.device:
    """Return where a model's weights are."""
    return model.output_weight.device
