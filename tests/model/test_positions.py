"""Sinusoids and rotations."""

from __future__ import annotations

import math

import torch

from tfray.model.positions import positions_in, rotate, sinusoids


def test_sinusoids_are_those_of_the_paper():
    d_model = 10
    expected = [
        [
            math.sin(position / 10_000 ** (i / d_model))
            if i % 2 == 0
            else math.cos(position / 10_000 ** ((i - 1) / d_model))
            for i in range(d_model)
        ]
        for position in range(24)
    ]
    torch.testing.assert_close(sinusoids(24, d_model), torch.tensor(expected), atol=1e-5, rtol=0)


def at(states: torch.Tensor, position: int) -> torch.Tensor:
    """Return states of one position, rotated as those at another one."""
    return rotate(states.expand(-1, -1, position + 1, -1))[:, :, position:]


def test_rotated_queries_and_keys_see_only_their_distance():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 1, 16)

    def similarity(query_position: int, key_position: int) -> torch.Tensor:
        return (at(query, query_position) * at(key, key_position)).sum(-1)

    for distance in (0, 1, 9):
        for start in (1, 5, 100):
            torch.testing.assert_close(
                similarity(start + distance, start), similarity(distance, 0), atol=1e-4, rtol=1e-4
            )
    assert not torch.allclose(similarity(3, 0), similarity(4, 0), atol=1e-2)
    assert not torch.allclose(similarity(3, 0), similarity(0, 3), atol=1e-2)


def test_rotation_keeps_lengths_and_leaves_the_first_position():
    states = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotate(states).norm(dim=-1), states.norm(dim=-1))
    torch.testing.assert_close(rotate(states)[:, :, 0], states[:, :, 0])


def test_positions_begin_anew_in_every_segment():
    segments = torch.tensor([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    assert positions_in(segments).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_given_positions_rotate_as_counted_ones_do():
    torch.manual_seed(0)
    states = torch.randn(2, 3, 6, 8)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4]])
    found = rotate(states, positions)
    torch.testing.assert_close(found[0, :, 3:], rotate(states[:1, :, 3:])[0])
    torch.testing.assert_close(found[1, :, 1:], rotate(states[1:, :, 1:])[0])
