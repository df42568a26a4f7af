"""What comes back of drawn targets, each of them once: the most probable, or those of least risk."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tfray.generation.rows import Hypothesis, Output

Utility = Callable[[Sequence[Sequence[int]]], Sequence[Sequence[float]]]
"""Of some targets, how good each is where each is the reference: (candidates, references), better when higher."""


def most_probable(output: Output, n_best: int = 1) -> Output:
    """Return an output's n_best samples by their ranking scores, those that have ended first."""
    if output.error is not None:
        return output
    found = sorted(distinct(output), key=lambda sample: (not sample.is_finished, -sample.ranking_score))
    return replace(output, hypotheses=found[:n_best])


def least_risk(output: Output, utility: Utility, n_best: int = 1) -> Output:
    """Return an output's n_best samples by their mean utility with all samples as references, which becomes
    their ranking score (minimum Bayes risk, Kumar and Byrne 2004).

    Each sample counts as often as it was drawn; of equals the one that was drawn first comes first.
    """
    if output.error is not None:
        return output
    counts = Counter(tuple(sample.ids) for sample in output.hypotheses)
    samples, total = distinct(output), len(output.hypotheses)
    table = utility([sample.ids for sample in samples])
    ranked = [
        replace(sample, ranking_score=sum(map(operator.mul, counts.values(), line)) / total)
        for sample, line in zip(samples, table, strict=True)
    ]
    ranked.sort(key=lambda hypothesis: -hypothesis.ranking_score)
    return replace(output, hypotheses=ranked[:n_best])


def distinct(output: Output) -> list[Hypothesis]:
    """Return each target once, in the order of drawing."""
    firsts: dict[tuple[int, ...], Hypothesis] = {}
    for sample in output.hypotheses:
        firsts.setdefault(tuple(sample.ids), sample)
    return list(firsts.values())
