"""Progress for people: a line that moves on a terminal, plain lines now and then in a job's log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

LOG_EVERY_SECONDS = 10.0

WITH_TOTAL = (
    "{desc}: {n_fmt}/{total_fmt}{unit} ({percentage:.0f}%), {rate_noinv_fmt}, "
    "{elapsed} elapsed, {remaining} left{postfix}"
)
WITHOUT_TOTAL = "{desc}: {n_fmt}{unit}, {rate_noinv_fmt}, {elapsed} elapsed{postfix}"

Own = TypeVar("Own", bound="Progress")


class Progress:
    """Count, total, rate, elapsed time and time left of one task, on stderr."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        show = TerminalLine if sys.stderr.isatty() else LogLines
        self._view = show(label, total, unit)
        self._begun = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since the display began."""
        return time.monotonic() - self._begun

    def update(self, n: int, rate: float | None = None, **postfix: object) -> None:
        """Count n more as done; the postfix stays until another one is given.

        rate: from which the time left follows, where it is not that of all that is done since the display began.
        """
        self._view.update(n, format_postfix(postfix), rate)

    def close(self) -> None:
        """Write the last state; closing again does nothing."""
        self._view.close()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Intake(Progress):
    """How much of an input is read, in bytes, and what was counted in it."""

    def __init__(self, label: str, total_bytes: int) -> None:
        super().__init__(label, total_bytes, "B")
        self._counts: Counter[str] = Counter()

    def take(self, size: int, **counts: int) -> None:
        """Count bytes as read, and what was found in them; each count is shown with its rate."""
        self._counts.update(counts)
        seconds = max(self.seconds(), 1e-3)
        self.update(size, None, **{name: f"{n:,} ({n / seconds:,.0f}/s)" for name, n in self._counts.items()})


class RatedBar(tqdm):
    """A bar that takes its rate from us, where we know better than it."""

    own_rate: float | None = None

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        found = super().format_dict
        return {**found, "rate": self.own_rate} if self.own_rate is not None else found


class TerminalLine:
    """One line, kept up to date in place."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._bar = RatedBar(
            desc=label,
            total=total,
            **unit_format(unit),
            # The bar takes what is left of the line; without one, tqdm would not cut a long line.
            bar_format=line_format(total) + " {bar}",
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def update(self, n: int, postfix: str, rate: float | None) -> None:
        self._bar.own_rate = rate
        if postfix:
            self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(n)

    def close(self) -> None:
        self._bar.close()


class LogLines:
    """The first state, the last one, and between them one at most every LOG_EVERY_SECONDS."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._done = 0
        self._postfix = ""
        self._rate: float | None = None
        self._started = time.monotonic()
        self._is_closed = False
        self._write()

    def update(self, n: int, postfix: str, rate: float | None) -> None:
        self._done += n
        self._rate = rate
        self._postfix = postfix or self._postfix
        if time.monotonic() - self._written >= LOG_EVERY_SECONDS:
            self._write()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        line = tqdm.format_meter(
            self._done,
            self._total or 0,
            elapsed=self._written - self._started,
            prefix=self._label,
            **unit_format(self._unit),
            postfix=self._postfix,
            rate=self._rate,
            bar_format=line_format(self._total),
        )
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def unit_format(unit: str) -> dict[str, Any]:
    """Return how tqdm writes counts of a unit: bytes as 1.23MB, others as they are."""
    return {"unit": "B", "unit_scale": True} if unit == "B" else {"unit": f" {unit}"}


def line_format(total: int | None) -> str:
    """Return tqdm's template of a line; without a total there is no share and no time left."""
    return WITHOUT_TOTAL if total is None else WITH_TOTAL


def format_postfix(postfix: dict[str, object]) -> str:
    """Return 'loss=3.21, step=400'; floats are cut to three significant digits."""
    return ", ".join(f"{name}={format_value(value)}" for name, value in postfix.items())


def format_value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
