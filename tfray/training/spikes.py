"""Which steps are left out because their gradient or loss is nothing like those before.

One bad micro-batch can throw AdamW's moments off for thousands of steps; leaving it out costs nothing. The rule sees
numbers that are reduced over all workers, so that every worker finds the same.
"""

from __future__ import annotations

import math
from statistics import median

HISTORY = 200
"""Steps by whose medians a step is judged."""
NEEDED = 50
"""Steps without which there is no judgement: the first of a training fall fast."""
IN_A_ROW = 10
"""Spikes in a row that are skipped. More are no accident of the data but a new level, and skipping them would
go on for ever."""
LEAST_DISTANCE = 0.05
"""Nats a token: without it, a training that knows its data by heart would skip all that it still can learn from."""


class SpikeGuard:
    """Remembers gradient norms and losses of the last steps, and judges the next by them.

    least_norm is what the median of the norms is taken for at least: gradients are clipped to it, and without it a
    training that makes hardly a mistake any more would skip all that it still makes.
    """

    def __init__(self, factor: float, least_norm: float = 0.0) -> None:
        self.factor, self.least_norm = factor, least_norm
        self.load_state_dict({})

    def judge(self, norm: float, loss: float) -> bool:
        """Say whether a step, by its gradient norm and its loss per target token, is to be skipped.

        So is one that is not finite, but that is no spike: it is not remembered, and whoever called must stop.
        """
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return True
        if not self.factor:
            return False
        if self.is_spike(norm, loss):
            self.in_a_row += 1
            if self.in_a_row <= IN_A_ROW:
                return True
            self.norms, self.losses, self.resets = [], [], self.resets + 1
        self.in_a_row = 0
        self.norms = [*self.norms, norm][-HISTORY:]
        self.losses = [*self.losses, loss][-HISTORY:]
        return False

    def is_spike(self, norm: float, loss: float) -> bool:
        """Say whether a step is far above the medians of those before."""
        if len(self.norms) < NEEDED:
            return False
        usual = median(self.losses)
        distance = max(LEAST_DISTANCE, median(abs(earlier - usual) for earlier in self.losses))
        usual_norm = max(self.least_norm, median(self.norms))
        return norm > self.factor * usual_norm or loss - usual > self.factor * distance

    def state_dict(self) -> dict[str, list[float] | int]:
        """Return what was remembered, as JSON keeps it."""
        return {"norms": self.norms, "losses": self.losses, "in_a_row": self.in_a_row, "resets": self.resets}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what was remembered; {} is nothing."""
        self.norms: list[float] = list(state.get("norms", []))
        self.losses: list[float] = list(state.get("losses", []))
        self.in_a_row: int = state.get("in_a_row", 0)
        self.resets: int = state.get("resets", 0)
        """Times that a spike too many was taken for a new level."""
