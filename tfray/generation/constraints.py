"""Phrases that a target must contain: dynamic beam allocation (Post and Vilar 2018, algorithm 2).

Beginnings compete only with those that have met as many of the constraints' tokens; the beam is dealt out
evenly over these banks, the fullest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tfray.tokens.special import EOS_ID

Phrases = Sequence[Sequence[int]]


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


def next_tokens(phrases: Phrases, ids: Sequence[int]) -> set[int]:
    """Return the tokens that bring a beginning nearer to its phrases."""
    before = unmet(phrases, ids)
    return {token for phrase in phrases for token in phrase if unmet(phrases, [*ids, token]) < before}


def choose_with_phrases(
    phrases: Phrases, ids: list[list[int]], scores: list[float], log_probs: Tensor, room: int
) -> list[tuple[float, int, int]]:
    """Return (score, parent, token) of a row's next beginnings, as many as the beam has, the best first.

    log_probs: (beam, vocab); room: tokens left; a beginning that cannot meet its phrases any more is
    worth nothing.
    """
    size, never = len(ids), float("-inf")
    candidates: dict[tuple[int, int], tuple[float, int]] = {}
    top = log_probs.topk(min(size + 1, log_probs.shape[1]), dim=-1).indices.tolist()
    for parent, (beginning, score) in enumerate(zip(ids, scores, strict=True)):
        if score == never:
            continue
        for token in {*top[parent], *next_tokens(phrases, beginning)} - {EOS_ID}:
            total = score + float(log_probs[parent, token])
            missing = unmet(phrases, [*beginning, token])
            if total > never and missing <= room - 1:
                candidates[parent, token] = (total, missing)
    banks: dict[int, list[tuple[float, int, int]]] = {}
    for (parent, token), (total, missing) in sorted(candidates.items(), key=lambda item: (-item[1][0], item[0])):
        banks.setdefault(missing, []).append((total, parent, token))
    chosen: list[tuple[float, int, int]] = []
    while len(chosen) < size and any(banks.values()):
        for missing in sorted(banks):
            if banks[missing] and len(chosen) < size:
                chosen.append(banks[missing].pop(0))
    chosen.sort(key=lambda item: (-item[0], item[1], item[2]))
    return chosen + [(never, 0, EOS_ID)] * (size - len(chosen))
