"""The gate before lower precision: how much a score falls, and a refusal where it falls too far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tfray.config import GenerationConfig
from tfray.errors import InputError
from tfray.generation.generate import generate
from tfray.generation.network import Precision
from tfray.model.transformer import Transformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What a precision costs on some sources."""

    precision: str
    reference: float
    """Metric of fp32."""
    found: float
    """Metric of the precision."""
    agreement: float
    """Share of rows whose best hypothesis is the same in both."""

    @property
    def loss(self) -> float:
        return self.reference - self.found


def compare_precisions(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    metric: Callable[[list[list[int]]], float],
    config: GenerationConfig,
    precision: Precision,
) -> Comparison:
    """Return the metric of the best hypotheses in fp32 and in a precision; metric: ids of all rows -> number."""
    reference, found = (
        [output.best.ids for output in generate(model, sources, replace(config, precision=name))]
        for name in ("fp32", precision)
    )
    same = sum(one == other for one, other in zip(reference, found, strict=True))
    return Comparison(precision, metric(reference), metric(found), same / max(1, len(sources)))


def require_quality(comparison: Comparison, most_loss: float) -> None:
    """Raise InputError where a precision loses more than a limit, in the metric's own units."""
    logger.info(
        "%s: %.2f, fp32: %.2f; %.1f %% of rows alike",
        *(comparison.precision, comparison.found, comparison.reference, 100 * comparison.agreement),
    )
    if comparison.loss > most_loss:
        raise InputError(
            f"generation.precision={comparison.precision!r} loses {comparison.loss:.2f} against fp32 "
            f"({comparison.found:.2f}, {comparison.reference:.2f}), more than the limit of {most_loss}; "
            "use bf16 or fp32, or raise the limit"
        )
