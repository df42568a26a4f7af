"""Cached decoding equals full decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfray.generation.cache import FIRST_LENGTH, DecoderCache, KeyValueCache
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer


def tiny_model(**options: Any) -> Transformer:
    torch.manual_seed(6)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, vocab_size=15, max_length=99)
    return Transformer(Architecture(**sizes, **options)).eval()  # type: ignore[arg-type]


SOURCE = torch.tensor([[3, 4, 5, 6, 2], [7, 8, 2, 0, 0], [9, 2, 0, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_cached_decoding_equals_full_decoding(positions: str, norm_position: str):
    model = tiny_model(positions=positions, norm_position=norm_position)
    length = 2 * FIRST_LENGTH + 3  # the buffers grow twice
    target = torch.cat([torch.ones(3, 1, dtype=torch.long), torch.randint(3, 15, (3, length - 1))], dim=1)
    full = model(SOURCE, target).log_softmax(-1)
    memory = model.encode(SOURCE)
    cache = DecoderCache(model.project_memory(memory), memory.mask)
    for position in range(length):
        logits = model.decode_next(target[:, position], cache.memory_keys_values, cache.memory_mask, cache.past)
        torch.testing.assert_close(logits.log_softmax(-1), full[:, position], atol=1e-4, rtol=0)


@torch.no_grad()
def test_selected_rows_and_hypotheses_go_on_with_their_own_past():
    model = tiny_model()
    pasts = torch.tensor([[1, 3, 4], [1, 5, 6], [1, 7, 8], [1, 9, 10], [1, 11, 12], [1, 13, 14]])  # two a row
    memory = model.encode(SOURCE)
    cache = DecoderCache(model.project_memory(memory), memory.mask)
    for column in pasts.T[:2]:
        model.decode_next(column, cache.memory_keys_values, cache.memory_mask, cache.past)
    rows, hypotheses = torch.tensor([0, 2]), torch.tensor([1, 1, 5, 4])
    cache.select_rows(rows)
    cache.select_hypotheses(hypotheses)
    last = pasts[hypotheses, 2]
    logits = model.decode_next(last, cache.memory_keys_values, cache.memory_mask, cache.past)
    full = model(SOURCE[rows].repeat_interleave(2, 0), pasts[hypotheses])[:, -1]
    torch.testing.assert_close(logits, full, atol=1e-5, rtol=0)


@given(st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 2), min_size=3, max_size=3)), max_size=6))
def test_a_cache_returns_all_that_was_put_in_in_order(steps: list[tuple[int, list[int]]]):
    cache = KeyValueCache()
    expected = torch.empty(2, 3, 1, 0, 4)
    for length, chosen in steps:
        states = torch.randn(2, 3, 1, length, 4)
        expected = torch.cat([expected, states], dim=3)
        found = cache.append(*states)
        assert cache.length == expected.shape[3]
        assert torch.equal(torch.stack(found), expected)
        cache.select(torch.tensor(chosen))
        expected = expected[:, chosen]
