"""Phrases that a target must contain: dynamic beam allocation (Post and Vilar 2018, algorithm 2).

Beginnings compete only with those that have met as many of the constraints' tokens; the beam is dealt out
evenly over these banks, the fullest first. So do ends: with beginnings that have met all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from torch import Tensor

from tfray.generation.ranking import NEVER
from tfray.generation.select import best_tokens
from tfray.tokens.special import EOS_ID, PAD_ID

Phrases = Sequence[Sequence[int]]
Candidate = tuple[float, int, int]
"""Score, parent, token."""


def unmet(phrases: Phrases, ids: Sequence[int]) -> int:
    """Return how many tokens of the phrases are still to come after ids.

    Phrases are found from left to right without overlap, the longest first, each once for each time it is
    asked for; one that is begun at the end counts by the tokens that stand there.
    """
    waiting = sorted(map(list, phrases), key=len, reverse=True)
    start = free = 0
    while start < len(ids) and waiting:
        found = next((phrase for phrase in waiting if list(ids[start : start + len(phrase)]) == phrase), None)
        if found is None:
            start += 1
        else:
            waiting.remove(found)
            start = free = start + len(found)
    return sum(map(len, waiting)) - begun(waiting, ids[free:])


def begun(waiting: list[list[int]], ids: Sequence[int]) -> int:
    """Return the most tokens of a waiting phrase with which ids end."""
    return max(
        (
            count
            for phrase in waiting
            for count in range(min(len(phrase) - 1, len(ids)), 0, -1)
            if list(ids[-count:]) == phrase[:count]
        ),
        default=0,
    )


def choose_with_phrases(
    phrases: Phrases, ids: list[list[int]], scores: list[float], log_probs: Tensor, room: int
) -> list[Candidate]:
    """Return a row's next candidates, twice as many as the beam has: those that end, then the beginnings that go
    on, the best first each.

    log_probs: (beam, vocab); room: tokens left; a beginning that cannot meet its phrases any more, and end, is
    worth nothing.
    """
    size = len(ids)
    banks = fill_banks(phrases, ids, scores, log_probs, room)
    # An end counts among the best of those that have met all phrases.
    ends = [candidate for candidate in banks.get(0, [])[:size] if candidate[2] == EOS_ID]
    lines = [[candidate for candidate in banks[missing] if candidate[2] != EOS_ID] for missing in sorted(banks)]
    dealt = [candidate for turn in zip_longest(*lines) for candidate in turn if candidate is not None][:size]
    chosen = ends + sorted(dealt, key=in_order)
    return chosen + [(NEVER, 0, PAD_ID)] * (2 * size - len(chosen))


def fill_banks(
    phrases: Phrases, ids: list[list[int]], scores: list[float], log_probs: Tensor, room: int
) -> dict[int, list[Candidate]]:
    """Return candidates by how many tokens of the phrases are still to come after them, the best first."""
    size, banks = len(ids), dict[int, list[Candidate]]()
    wanted = sorted({EOS_ID, *(token for phrase in phrases for token in phrase)})
    # In each bank as many as the beam has are enough: they are among these, or have a wanted token.
    values, tokens = (part.tolist() for part in best_tokens(log_probs, size + len(wanted)))
    asked = log_probs[:, wanted].tolist()
    for parent, (beginning, score) in enumerate(zip(ids, scores, strict=True)):
        best, others = zip(tokens[parent], values[parent], strict=True), zip(wanted, asked[parent], strict=True)
        for token, log_prob in (dict(best) | dict(others)).items():
            total = score + log_prob
            if total == NEVER:
                continue
            missing = unmet(phrases, [*beginning, token])
            if not missing or (missing < room - 1 and token != EOS_ID):
                banks.setdefault(missing, []).append((total, parent, token))
    return {missing: sorted(bank, key=in_order) for missing, bank in banks.items()}


def in_order(candidate: Candidate) -> tuple[float, int, int]:
    """Return what candidates are sorted by: the best first, equal ones by parent and token."""
    total, parent, token = candidate
    return -total, parent, token
