"""The compiled kernels do what torch does, and torch serves where they cannot be had."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tfray.config import GenerationConfig
from tfray.generation import native, products
from tfray.generation.attention import attend, bias_of
from tfray.generation.generate import generate
from tfray.generation.linear import Activation, PlainLinear, quantize_outputs, quantize_rows
from tfray.generation.paged import in_blocks
from tfray.generation.panels import PanelByteLinear, PanelLinear
from tfray.generation.tiled import TiledByteLinear, TiledHalfLinear

KERNELS = native.kernels(torch.device("cpu"))
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="no C compiler")


def lengths_mask(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


@needs_kernels
@pytest.mark.parametrize("width", [1, 15, 256, 1000])
def test_rows_are_normalized_as_by_torch(width):
    torch.manual_seed(width)
    states, bias, weight = torch.randn(9, width), torch.randn(width), torch.randn(width)
    output = torch.empty_like(states)
    native.call(KERNELS.normalize_rows, states, weight, bias, 1e-5, output, 9, width)
    torch.testing.assert_close(output, F.layer_norm(states, (width,), weight, bias), atol=1e-5, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("vocab", [3, 100, 8192])
def test_log_probabilities_are_those_of_torch(vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(7, vocab) * 5
    logits[0, 1] = float("-inf")
    sums, bounds = torch.empty(7, 1), torch.empty(7, -(-vocab // 64))
    native.call(KERNELS.log_sums, logits, sums, bounds, 7, vocab)
    assert bounds.equal(torch.stack([block.amax(1) for block in logits.split(64, dim=1)], dim=1))
    torch.testing.assert_close(logits - sums, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("size", [6, 32, 48, 64, 128])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_attention_to_the_source_is_that_of_torch(width, size):
    torch.manual_seed(size)
    heads, lengths, capacity = 2, [5, 1, 30], 32
    queries = torch.randn(3 * width, heads * size) / size**0.5
    keys, values = torch.randn(2, 4, heads, capacity, size)
    output = torch.empty_like(queries)
    shape = (3, width, heads, size, capacity)
    native.call(KERNELS.attend_memory, queries, in_blocks(keys), values, torch.tensor(lengths), output, *shape)
    bias = bias_of(lengths_mask(lengths, capacity), torch.float32)[:, None]
    expected, _ = attend(queries.view(3, width, heads, size), keys[:3], values[:3], bias)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    joint = torch.randn(sum(lengths), 3 * heads * size) / size**0.25
    output = torch.empty(len(joint), heads * size)
    native.call(KERNELS.attend_sequences, joint, torch.tensor([0, 5, 6, 36]), output, 3, heads, size, 30, False)
    for start, stop in ((0, 5), (5, 6), (6, 36)):
        own = joint[start:stop].view(1, stop - start, 3, heads, size)
        query, key, value = own[:, :, 0], own[:, :, 1].transpose(1, 2), own[:, :, 2].transpose(1, 2)
        expected, _ = attend(query, key, value, torch.zeros(1, 1, stop - start))
        torch.testing.assert_close(output[start:stop], expected, atol=1e-5, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("size", [6, 32, 64, 128])
def test_attention_of_a_whole_target_is_that_of_torch(size):
    torch.manual_seed(size)
    joint = torch.randn(3 * 20, 3 * 2 * size) / size**0.25
    output = torch.empty(60, 2 * size)
    native.call(KERNELS.attend_sequences, joint, torch.tensor([0, 20, 40, 60]), output, 3, 2, size, 20, True)
    query, keys, values = joint.view(3, 20, 3, 2, size).unbind(2)
    causal = bias_of(torch.ones(20, 20, dtype=torch.bool).tril(), torch.float32)[None]
    expected, _ = attend(query, keys.transpose(1, 2), values.transpose(1, 2), causal)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


class PlainByteLinear(PlainLinear):
    """The plain product of what bytes hold."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        whole, scale = quantize_outputs(weight)
        super().__init__(whole * scale[:, None], bias, activation)

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        whole, scale = quantize_rows(states)
        return super().__call__((whole.float() - 128) * scale, residual)


@pytest.mark.parametrize("kind", [PanelLinear, PanelByteLinear, TiledHalfLinear, TiledByteLinear])
def test_a_row_with_a_number_that_is_none_has_none_in_its_product_and_the_others_have(kind):
    torch.manual_seed(0)
    weight, states = torch.randn(40, 20), torch.randn(4, 20)
    states[0], states[2, 3] = float("nan"), float("nan")
    try:
        found = kind(weight, None, "relu")(states)
    except RuntimeError:
        pytest.skip("the processor has no such products")
    assert found.isnan().all(1).tolist() == found.isnan().any(1).tolist() == [True, False, True, False]


@needs_kernels
def test_what_is_no_number_is_none_in_halves_either():
    size = 2 * native.lanes()
    part = torch.ones(1, 1, 2, 1, size)
    part.view(torch.int32)[..., 0] = 0x7FFFFFFF  # as NVIDIA's GPUs write it: adding to round it makes it -0
    buffer = torch.zeros(1, 2, 1, 1, 16, size, dtype=torch.bfloat16)
    native.call(KERNELS.keep_memory_half, part, buffer, 0, 1, 1, 1, 1, 16, size)
    assert buffer.isnan().flatten(2).sum(2).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "search", [dict(beam_size=1), dict(beam_size=3, n_best=2), dict(search="sample", samples=2)], ids=str
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_with_and_without_kernels_the_search_finds_the_same(precision, search, lively, sources_of, monkeypatch):
    model, sources = lively(2, d_model=64, d_ff=64), sources_of(60)
    config = GenerationConfig(**search, precision=precision, batch_rows=5)
    found = generate(model, sources, config)
    monkeypatch.setattr(native, "kernels", lambda device: None)
    monkeypatch.setitem(products.KINDS, "int8", [PlainByteLinear])  # torch's own are not sound on every processor
    plain = generate(model, sources, config)
    same = sum(one.best.ids == other.best.ids for one, other in zip(found, plain, strict=True))
    assert same >= (60 if precision == "fp32" else 50)
    if precision == "fp32":
        assert [o.best.score for o in found] == pytest.approx([o.best.score for o in plain], abs=1e-2)


@pytest.mark.parametrize(
    "setting", [{"TFRAY_NATIVE": "0"}, {"CC": "/nonexistent/cc", "XDG_CACHE_HOME": "EMPTY"}], ids=str
)
def test_without_a_compiler_torch_does_the_work(setting, tmp_path):
    import os

    program = "from tfray.generation import native; print(native.compiled())"
    environment = {**os.environ, **setting}
    if "XDG_CACHE_HOME" in setting:
        environment["XDG_CACHE_HOME"] = environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_many_threads_leave_the_work_to_torch():
    torch.set_num_threads(2)
    try:
        assert native.kernels(torch.device("cpu")) is None
    finally:
        torch.set_num_threads(1)
