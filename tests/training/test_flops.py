"""Counted operations are those that torch counts, padding left out; devices are known by their names."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tfray.batches.batch import Batch, collate
from tfray.batches.packed import collate_packed
from tfray.batches.packing import Widths
from tfray.model import native
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.tokens.special import EOS_ID, PAD_ID
from tfray.training.flops import batch_flops, device_peak, forward_flops, known_peak, measured_rate, pair_lengths

SMALL = Architecture(
    d_model=32, num_heads=2, d_ff=48, encoder_layers=3, decoder_layers=2, vocab_size=70, max_length=64, dropout=0.0
)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    """Return pairs with so many tokens that the encoder reads, and that the decoder must predict."""
    sources = ragged([[*[5] * (source - 1), EOS_ID] for source, _ in lengths])
    return collate(sources, ragged([[6] * (target - 1) for _, target in lengths]))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("is_training", [False, True])
def test_operations_are_those_that_torch_counts_where_nothing_is_padding(
    activation: str, is_training: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "find", lambda *_: None)  # torch does not count what our kernels compute
    architecture = dataclasses.replace(SMALL, activation=activation)
    batch = batch_of([(8, 12)] * 3)
    model = Transformer(architecture)
    with FlopCounterMode(display=False) as counter:
        logits = model(batch.source_ids, batch.target_ids)
        if is_training:
            logits.sum().backward()
    counted = batch_flops(architecture, batch) / (1 if is_training else 3)
    assert counter.get_total_flops() == counted


def test_padding_adds_no_operations_and_pairs_do_not_see_each_other():
    together = batch_flops(SMALL, batch_of([(3, 9), (17, 2)]))
    apart = batch_flops(SMALL, batch_of([(3, 9)])) + batch_flops(SMALL, batch_of([(17, 2)]))
    assert together == apart


def test_packed_pairs_count_as_those_in_rows_of_their_own():
    lengths = [(3, 9), (17, 2), (5, 5), (8, 1)]
    sides = [[[*[5] * (source - 1), EOS_ID] for source, _ in lengths], [[6] * (target - 1) for _, target in lengths]]
    packed = collate_packed(*map(ragged, sides), Widths(24, 24))
    assert len(packed.source_ids) < len(lengths)
    assert batch_flops(SMALL, packed) == batch_flops(SMALL, batch_of(lengths))


def test_rows_of_several_sentences_have_the_lengths_of_each():
    ids = torch.tensor([[5, 5, EOS_ID, 7, EOS_ID, PAD_ID], [5, EOS_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID]])
    assert pair_lengths(ids).tolist() == [3, 2, 2]


def test_two_passes_are_twice_the_work():
    batch = batch_of([(4, 4)])
    assert batch_flops(SMALL, batch, passes=2) == 2 * batch_flops(SMALL, batch)


def test_large_models_come_near_to_six_operations_a_weight_and_token():
    big = dataclasses.replace(SMALL, d_model=1024, num_heads=16, d_ff=4096, encoder_layers=6, decoder_layers=6)
    big = dataclasses.replace(big, vocab_size=32_000)
    with torch.device("meta"):
        model = Transformer(big)
    sides = [sum(p.numel() for p in stack.parameters()) for stack in (model.encoder, model.decoder, model.embedding)]
    tokens = torch.full((100,), 30.0, dtype=torch.float64)
    expected = 2 * 3000 * sum(sides)  # both sides are as long
    assert forward_flops(big, tokens, tokens) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_a_device_is_known_by_the_words_of_its_name(name: str, teraflops: float):
    assert known_peak(name) == teraflops * 1e12


def test_an_unknown_device_has_no_known_peak():
    assert known_peak("NVIDIA GeForce RTX 4090") is None
    assert known_peak("NVIDIA H200 MIG 1g.18gb") is None, "it does a part of what the whole card does"


def test_the_rate_of_a_cpu_is_measured_in_half_a_second():
    begun = time.monotonic()
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert time.monotonic() - begun < 5  # machines are shared
    assert 1e8 < peak.flops_per_second < 1e14 and peak.source.endswith("measured in float32")


def test_measuring_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    measured_rate(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_not_known_is_measured(monkeypatch: pytest.MonkeyPatch):
    device = torch.device("cuda")
    assert device_peak(device, torch.bfloat16).flops_per_second > 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA something new")
    assert device_peak(device, torch.bfloat16).source.endswith("measured in bfloat16")
