"""What goes in and what comes out, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tfray.config import GenerationConfig

Part = TypeVar("Part")

BEYOND_ALL = 1_000_000_000
"""Tokens that no target has."""


@dataclass(frozen=True)
class Request:
    """A source with what is asked for this row alone."""

    source: Sequence[int]
    """Ids, eos at the end."""
    prefix: Sequence[int] = ()
    """Ids with which the target must begin."""
    must: Sequence[Sequence[int]] = ()
    """Phrases that the target must contain. Only in beam search."""
    must_not: Sequence[Sequence[int]] = ()
    """Phrases that the target must not contain."""
    number: int | None = None
    """Seeds the row's samples together with `seed`; 64 bits. Default: the row's place in the call."""


@dataclass(frozen=True)
class Hypothesis:
    """A target that the search found."""

    ids: list[int]
    """Tokens without bos and eos."""
    score: float
    """Natural logarithm of the target's probability, eos included; not normalized by length."""
    is_finished: bool
    """False where the longest length was reached before eos."""
    ranking_score: float = 0.0
    """What hypotheses are ranked by: the score divided by the length penalty, plus the coverage penalty."""
    pieces: tuple[Hypothesis, ...] = ()
    """Of a source that was split: what each piece contributes."""


@dataclass(frozen=True)
class Output:
    """What a row gets: hypotheses, the best first, or an error."""

    hypotheses: list[Hypothesis] = field(default_factory=list)
    error: str | None = None
    """`kind: message` where the row could not be used; other rows are not affected."""
    truncated: bool = False
    """True where the source was cut to the model's longest, as `long_sources` asks for."""

    @property
    def best(self) -> Hypothesis:
        return self.hypotheses[0]

    @property
    def hit_max_length(self) -> bool:
        """True where the best hypothesis reached the longest length before eos."""
        return bool(self.hypotheses) and not self.best.is_finished


def longest_target(source_length: int, longest: int, config: GenerationConfig) -> int:
    """Return the most tokens of a source's target, eos included."""
    wanted = times(config.max_length_ratio, source_length, longest) + config.max_length_extra
    limits = [wanted, longest] + ([config.max_length] if config.max_length else [])
    return min(limits)


def shortest_target(source_length: int, config: GenerationConfig) -> int:
    """Return the fewest tokens of a source's target, eos not counted."""
    return max(config.min_length, times(config.min_length_ratio, source_length, BEYOND_ALL))


def times(ratio: float, source_length: int, most: int) -> int:
    """Return so many times a source's tokens, rounded up; at most `most`, for the product may be no number any more."""
    return -int(-min(ratio * source_length, most) // 1)


def lines_of(pieces: Sequence[Sequence[Part]]) -> list[tuple[Part, ...]]:
    """Return the n-th parts of all pieces as one; of a piece that has fewer, its last."""
    if not all(pieces):
        return []
    count = max(map(len, pieces))
    return [tuple(piece[min(place, len(piece) - 1)] for piece in pieces) for place in range(count)]
