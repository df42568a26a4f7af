"""The compiled kernels for training compute what torch does, values and gradients alike."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tfray.model import native
from tfray.model.attention import attend, attend_by_products
from tfray.model.fused import LONGEST, FusedAttention, LayerNorm, can_attend

DTYPES = [torch.float32, torch.bfloat16]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no C compiler")


def gradients_of(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    # The same in every type: where gradients cancel, rounding the weights would change them by more than kernels do.
    weights = torch.linspace(-1, 1, output.numel()).bfloat16().view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).float().sum(), inputs)]


def assert_near(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        limit = 3e-5 if dtype == torch.float32 else 0.01
        assert (our.double() - their.double()).norm() <= limit * their.double().norm() + 1e-6


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    size=st.sampled_from([16, 32, 64]),
    kind=st.sampled_from(["all", "padding", "causal"]),
)
def test_attention_is_that_of_torch(batch: int, queries: int, keys: int, size: int, kind: str, dtype: torch.dtype):
    keys = queries if kind == "causal" else keys
    random = torch.Generator().manual_seed(keys)
    joint = [torch.randn(batch, length, 2, 3 * size, generator=random).to(dtype) for length in (queries, keys)]
    parts = [joint[0][..., :size], joint[1][..., size : 2 * size], joint[1][..., 2 * size :]]
    narrow = [part.transpose(1, 2).detach().requires_grad_() for part in parts]
    wide = [part.detach().double().requires_grad_() for part in narrow]
    mask = None
    if kind == "padding":
        mask = (torch.arange(keys) <= torch.arange(batch)[:, None])[:, None, None, :]
    ours = FusedAttention.apply(*narrow, mask, kind == "causal")
    theirs = F.scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=kind == "causal")
    assert_near(gradients_of(ours, narrow), gradients_of(theirs, wide), dtype)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 7), (5, 3, 256), (2, 33, 512)])
def test_layer_norm_is_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype, threads: int):
    torch.manual_seed(0)
    layer = LayerNorm(shape[-1])
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    narrow = [(torch.randn(shape) * 3 + 1), layer.weight, layer.bias]
    narrow = [states.detach().to(dtype).requires_grad_() for states in narrow]
    wide = [states.detach().double().requires_grad_() for states in narrow]
    layer.weight, layer.bias = torch.nn.Parameter(narrow[1]), torch.nn.Parameter(narrow[2])
    torch.set_num_threads(threads)
    try:
        output = layer(narrow[0])
        ours = gradients_of(output, [narrow[0], layer.weight, layer.bias])
    finally:
        torch.set_num_threads(1)
    assert output.grad_fn.name().startswith("FusedLayerNorm")
    assert_near(ours, gradients_of(F.layer_norm(wide[0], shape[-1:], *wide[1:]), wide), dtype)


@needs_kernels
def test_two_threads_give_bit_for_bit_what_one_gives_in_attention():
    states = [torch.randn(5, 3, 20, 32).requires_grad_() for _ in range(3)]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gradients_of(FusedAttention.apply(*states, None, True), states))
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("change", ["long", "odd head", "mask of queries"])
def test_what_the_kernel_does_not_know_is_left_to_plain_products(change: str):
    length, size = (LONGEST + 1, 16) if change == "long" else (6, 8 if change == "odd head" else 16)
    states = [torch.randn(1, 2, length, size).requires_grad_() for _ in range(3)]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if change == "mask of queries" else None
    assert not can_attend(states[0], states[1], mask)
    assert torch.equal(attend(*states, mask), attend_by_products(*states, mask, causal=False))


@pytest.mark.parametrize(
    "setting", [{"TFRAY_NATIVE": "0"}, {"CC": "/nonexistent/cc", "XDG_CACHE_HOME": "EMPTY"}], ids=str
)
def test_without_a_compiler_torch_does_the_work(setting: dict[str, str], tmp_path):
    environment = {**os.environ, **setting}
    if "XDG_CACHE_HOME" in setting:
        environment["XDG_CACHE_HOME"] = environment["TMPDIR"] = str(tmp_path)
    program = (
        "import torch; from tfray.model import native; from tfray.model.fused import LayerNorm\n"
        "states = torch.randn(3, 16, requires_grad=True)\n"
        "print(native.library(), LayerNorm(16)(states).grad_fn.name())"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None NativeLayerNormBackward0"
