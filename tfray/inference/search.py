"""The search as text sees it: what is drawn is compared by chrF where the one of least risk is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams

from tfray.config import GenerationConfig
from tfray.generation.generate import Models, generate
from tfray.generation.rows import Output, Request
from tfray.generation.samples import Utility, distinct, least_risk, most_probable
from tfray.tokens.tokenizer import Tokenizer

Ngrams = Sequence[Counter]
"""Of one text, the characters' n-grams of each order."""


def search_targets(
    models: Models, tokenizer: Tokenizer, sources: Sequence[Sequence[int] | Request], config: GenerationConfig
) -> list[Output]:
    """Return each source's n_best targets, the best first and none twice: of a beam, or of what was drawn."""
    outputs = generate(models, sources, config)
    if config.search == "sample":
        return [most_probable(output, config.n_best) for output in outputs]
    if config.search == "mbr":
        utility = chrf_utility(tokenizer.decode_batch)
        return [least_risk(output, utility, config.n_best) for output in outputs]
    # Of a source that was split, pieces that differ may give the same when they are joined.
    return [replace(output, hypotheses=distinct(output)) for output in outputs]


def chrf_utility(decode_batch: Callable[[list[list[int]]], list[str]]) -> Utility:
    """Return what gives the sentence chrF (0 to 100, Popović 2015) of each target against each."""

    def utility(targets: Sequence[Sequence[int]]) -> list[list[float]]:
        texts = decode_batch([list(ids) for ids in targets])
        ngrams = [extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in texts]
        totals = [[counts.total() for counts in orders] for orders in ngrams]
        matches = [[count_matches(one, other) for other in ngrams[: place + 1]] for place, one in enumerate(ngrams)]
        places = range(len(texts))
        return [
            [chrf(totals[one], totals[other], matches[max(one, other)][min(one, other)]) for other in places]
            for one in places
        ]

    return utility


def count_matches(one: Ngrams, other: Ngrams) -> list[int]:
    """Return how many n-grams of each order two texts have in common."""
    return [
        sum(min(first[ngram], second[ngram]) for ngram in first.keys() & second.keys())
        for first, second in zip(one, other, strict=True)
    ]


def chrf(candidate: list[int], reference: list[int], matches: list[int]) -> float:
    """Return chrF from the n-grams of each order in a candidate, in a reference and in both, as sacrebleu has it."""
    orders = [counts for counts in zip(candidate, reference, matches, strict=True) if counts[0] and counts[1]]
    precision = sum(both / found for found, _, both in orders)
    recall = sum(both / wanted for _, wanted, both in orders)
    if not precision:
        return 0.0
    factor, count = CHRF.BETA**2, len(orders)
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall) / count
