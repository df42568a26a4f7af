"""Linear maps: as many rows as there are, in products of few sizes."""

from __future__ import annotations

import pytest
import torch

from tfray.generation import products
from tfray.generation.linear import BlockedLinear, HalfLinear, PlainLinear, QuantizedLinear, few_kinds
from tfray.generation.panels import PanelByteLinear, PanelLinear
from tfray.generation.products import choose_linear, works
from tfray.generation.tiled import TiledByteLinear, TiledHalfLinear, tiled

KINDS = [
    *((PanelLinear, 1e-5), (BlockedLinear, 1e-5), (HalfLinear, 0.05), (QuantizedLinear, 0.1)),
    *((TiledHalfLinear, 0.05), (TiledByteLinear, 0.1), (PanelByteLinear, 0.1)),
]


def test_products_of_any_number_of_rows_are_of_few_sizes():
    sizes = {rows: few_kinds(rows) for rows in range(1, 20_000)}
    assert all(rows <= size < max(rows + 16, 1.25 * rows) for rows, size in sizes.items())
    assert len(set(sizes.values())) < 80
    assert all(few_kinds(size) == size for size in sizes.values()), "what is filled up stays as it is"


@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 24), (37, 70)])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100, 129, 1000])
def test_every_row_is_multiplied_and_no_other_comes_back(kind, tolerance, inputs, outputs, rows):
    if not works(kind):
        pytest.skip(f"this processor has no {kind.__name__}")
    torch.manual_seed(0)
    weight, bias, states, residual = (
        torch.randn(outputs, inputs) / 8,
        torch.randn(outputs),
        torch.randn(rows, inputs),
        torch.randn(rows, outputs),
    )
    for activation, added in (("relu", None), ("gelu", None), ("none", None), ("none", residual)):
        found, expected = (each(weight, bias, activation)(states, added) for each in (kind, PlainLinear))
        assert found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [PanelLinear, TiledHalfLinear])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_what_is_no_number_stays_none_in_our_kernels(kind, activation):
    if not works(kind):
        pytest.skip(f"this processor has no {kind.__name__}")
    states = torch.ones(3, 32)
    states[1, 5] = float("nan")
    found = kind(torch.ones(40, 32), torch.zeros(40), activation)(states).float()
    assert found[1].isnan().all() and not found[[0, 2]].isnan().any()


@pytest.mark.parametrize("kind", [PanelByteLinear, TiledByteLinear])
def test_sums_of_bytes_are_exact_whatever_the_numbers(kind):
    if not works(kind):
        pytest.skip(f"this processor has no {kind.__name__}")
    torch.manual_seed(0)
    weight, states = (torch.randint(-127, 128, (count, 301)).double() for count in (70, 19))
    for numbers in (weight, states):
        numbers[:, 0] = 127  # so that bytes hold them as they are
    states[3], states[4] = 127, -127
    expected = states @ weight.T
    found = kind(weight.float(), None, "none")(states.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("group", "kind"), [(2, torch.bfloat16), (4, torch.int8)])
def test_a_tile_has_sixteen_outputs_and_every_input_in_its_place(group, kind):
    weight = torch.arange(40 * 100).view(40, 100).remainder(101).to(kind)
    tiles = tiled(weight)
    assert tiles.shape == (4, -(-100 // (16 * group)), 16, 16, group) and tiles[0, 0].nbytes == 1024
    for output, place in [(0, 0), (17, 3), (39, 99)]:
        found = tiles[output // 16, place // (16 * group), place // group % 16, output % 16, place % group]
        assert found == weight[output, place]
    assert tiles.float().sum() == weight.float().sum(), "and zeros elsewhere"


class TooNarrow(PlainLinear):
    """Sums that do not fit, as those of bytes on older processors."""

    def __call__(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return super().__call__(states, residual).clamp(-8, 8)


class Missing:
    """A product that this processor does not have."""

    def __init__(self, *_: object) -> None:
        raise RuntimeError("needs avx512bw")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_where_products_are_wrong_or_missing_generation_computes_in_fp32_and_says_so(precision, monkeypatch, caplog):
    monkeypatch.setattr(products, "KINDS", {**products.KINDS, "bf16": [Missing, TooNarrow], "int8": [Missing]})
    assert choose_linear(precision, torch.device("cpu")) is next(filter(works, [PanelLinear, BlockedLinear]))
    assert f"no sound products in {precision}: generation computes in fp32" in caplog.text
