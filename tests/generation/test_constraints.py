"""The deal of a beam over what has met as many tokens of the phrases."""

from __future__ import annotations

import torch

from tfray.generation.constraints import choose_with_phrases


def test_equal_candidates_go_by_parent_and_token():
    log_probs = torch.full((3, 600), -1.0)
    log_probs[:, :3] = float("-inf")
    chosen = choose_with_phrases([[300]], [[5], [6], [7]], [-1.0, -1.0, -1.0], log_probs, room=9)
    assert chosen[:3] == [(-2.0, 0, 3), (-2.0, 0, 300), (-2.0, 1, 300)]


def test_what_has_no_room_for_its_phrases_and_an_end_is_worth_nothing():
    log_probs = torch.full((2, 20), -1.0)
    for room, expected in ((3, {10}), (4, {10, *range(20)})):
        chosen = choose_with_phrases([[10, 11]], [[5], [10]], [-1.0, float("-inf")], log_probs, room)
        tokens = {token for score, _, token in chosen if score > float("-inf")}
        assert tokens <= expected and 10 in tokens
