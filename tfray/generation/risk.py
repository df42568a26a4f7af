"""Minimum Bayes risk: of several samples the one that is most like the others (Kumar and Byrne 2004)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfray.generation.rows import Hypothesis, Output

Utility = Callable[[Sequence[int], Sequence[int]], float]


def least_risk(output: Output, utility: Utility, n_best: int = 1) -> Output:
    """Return an output's n_best samples by their mean utility with all samples as references, which becomes
    their rank.

    utility(candidate ids, reference ids) is better when higher. Each sample counts as often as it was drawn;
    of equals the one that was drawn first comes first, and each target comes once.
    """
    if output.error is not None:
        return output
    counts: dict[tuple[int, ...], int] = {}
    firsts: dict[tuple[int, ...], Hypothesis] = {}
    for sample in output.hypotheses:
        key = tuple(sample.ids)
        counts[key] = counts.get(key, 0) + 1
        firsts.setdefault(key, sample)
    total = sum(counts.values())
    ranked = []
    for key, sample in firsts.items():
        mean = sum(count * utility(key, other) for other, count in counts.items()) / total
        ranked.append(Hypothesis(sample.ids, sample.score, sample.is_finished, mean))
    ranked.sort(key=lambda hypothesis: -hypothesis.rank)
    return Output(ranked[:n_best], output.error, output.truncated)
