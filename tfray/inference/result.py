"""What a model in process gives for a text."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """One text that the search found."""

    text: str
    score: float
    """Natural logarithm of its probability."""
    is_finished: bool
    """False where the longest length was reached before its end."""
    alignment: Tensor | None = field(default=None, compare=False)
    """Attention of each target token to each source token that the search saw, (target, source), ends included; of a
    source that was split piece by piece, each with its ends, and 0 from one to another; on request."""


@dataclass(frozen=True)
class Result:
    """What a source text gets: targets, the best first, or an error."""

    n_best: list[Target] = field(default_factory=list)
    error: str | None = None
    """`kind: message`; other texts are not affected."""
    truncated: bool = False

    @property
    def text(self) -> str | None:
        return self.n_best[0].text if self.n_best else None

    @property
    def score(self) -> float | None:
        return self.n_best[0].score if self.n_best else None

    @property
    def hit_max_length(self) -> bool:
        return bool(self.n_best) and not self.n_best[0].is_finished
