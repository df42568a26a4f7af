"""Linear maps: as many rows as there are, in products of few sizes."""

from __future__ import annotations

import pytest
import torch

from tfray.generation import linear
from tfray.generation.linear import BlockedLinear, HalfLinear, PlainLinear, QuantizedLinear, choose_linear, few_kinds

KINDS = [("fp32", BlockedLinear, 1e-5), ("bf16", HalfLinear, 0.05), ("int8", QuantizedLinear, 0.1)]


def test_products_of_any_number_of_rows_are_of_few_sizes():
    sizes = {rows: few_kinds(rows) for rows in range(1, 20_000)}
    assert all(rows <= size < max(rows + 16, 1.25 * rows) for rows, size in sizes.items())
    assert len(set(sizes.values())) < 80
    assert all(few_kinds(size) == size for size in sizes.values()), "what is filled up stays as it is"


@pytest.mark.parametrize(("precision", "kind", "tolerance"), KINDS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100, 129, 1000])
def test_every_row_is_multiplied_and_no_other_comes_back(precision, kind, tolerance, rows):
    if choose_linear(precision, torch.device("cpu")) is not kind:
        pytest.skip(f"this processor has no product of {precision}")
    torch.manual_seed(0)
    weight, bias, states, residual = (
        torch.randn(24, 64) / 8,
        torch.randn(24),
        torch.randn(rows, 64),
        torch.randn(rows, 24),
    )
    for activation, added in (("relu", None), ("none", None), ("none", residual)):
        found, expected = (each(weight, bias, activation)(states, added) for each in (kind, PlainLinear))
        assert found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


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
    monkeypatch.setattr(linear, "HalfLinear", TooNarrow)
    monkeypatch.setattr(linear, "QuantizedLinear", Missing)
    assert choose_linear(precision, torch.device("cpu")) is BlockedLinear
    assert f"no sound products in {precision}: generation computes in fp32" in caplog.text
