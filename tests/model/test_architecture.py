"""Presets, departures from them, and what is refused."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfray.config import ModelConfig
from tfray.errors import InputError
from tfray.model.architecture import PRESETS, Architecture, resolve


def architecture(**numbers: int) -> Architecture:
    return Architecture(**{"d_ff": 8, "encoder_layers": 1, "decoder_layers": 1, **numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_is_what_its_help_says(preset: Any):
    sizes = PRESETS[preset]
    assert sizes == resolve(ModelConfig(preset=preset), 0, 0)
    said = f"{preset} ({sizes.d_model}, {sizes.num_heads}, {sizes.d_ff}, {sizes.encoder_layers})"
    with open("tfray/config/model.py", encoding="utf-8") as file:
        assert said in " ".join(file.read().split())


def test_settings_depart_from_the_preset_and_from_nothing_else():
    changes: dict[str, Any] = dict(
        d_model=96,
        num_heads=6,
        decoder_layers=1,
        activation="swiglu",
        norm="rms",
        norm_position="post",
        positions="rotary",
        dropout=0.0,
    )
    resolved = resolve(ModelConfig(preset="base", **changes), vocab_size=77, max_length=33)
    assert asdict(resolved) == {**asdict(PRESETS["base"]), **changes, "vocab_size": 77, "max_length": 33}


def test_the_heads_share_the_width():
    assert architecture(d_model=48, num_heads=4).head_dim == 12


@given(st.integers(1, 300), st.integers(1, 20))
def test_heads_that_do_not_fit_are_refused_with_a_remedy_that_works(d_model: int, num_heads: int):
    assume(d_model % num_heads or (d_model // num_heads) % 2)
    with pytest.raises(InputError, match=rf"model.num_heads={num_heads} must divide model.d_model={d_model} ") as error:
        architecture(d_model=d_model, num_heads=num_heads)
    heads, width = re.search(r"try (?:(\d+) heads|d_model=(\d+))$", str(error.value)).groups()  # type: ignore[union-attr]
    architecture(d_model=int(width or d_model), num_heads=int(heads or 1))
