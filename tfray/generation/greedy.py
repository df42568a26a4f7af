"""Greedy search: the most probable token at each position; a row leaves at its own end."""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.cache import DecoderCache
from tfray.generation.hypothesis import Hypothesis, next_log_probs
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


def greedy_search(
    model: Transformer, source_ids: Tensor, limits: list[int], config: GenerationConfig
) -> list[Hypothesis]:
    """Return one hypothesis a row, of at most limits[row] tokens with eos."""
    memory = model.encode(source_ids)
    cache = DecoderCache(model.project_memory(memory), memory.mask)
    rows = len(source_ids)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    scores = [0.0] * rows
    finished = [False] * rows
    active = list(range(rows))
    last = torch.full((rows,), BOS_ID, device=source_ids.device)
    while active:
        logits = model.decode_next(last, cache.memory_keys_values, cache.memory_mask, cache.past)
        best = next_log_probs(logits, PAD_ID, BOS_ID).max(-1)
        for row, token, score in zip(active, best.indices.tolist(), best.values.tolist(), strict=True):
            scores[row] += score
            finished[row] = token == EOS_ID
            if not finished[row]:
                tokens[row].append(token)
        going_on = [place for place, row in enumerate(active) if not finished[row] and len(tokens[row]) < limits[row]]
        last = best.indices
        if len(going_on) < len(active):
            kept = torch.tensor(going_on, dtype=torch.long, device=source_ids.device)
            cache.select_rows(kept)
            cache.select_hypotheses(kept)
            last = last[kept]
        active = [active[place] for place in going_on]
    return [Hypothesis(*result) for result in zip(tokens, scores, finished, strict=True)]
