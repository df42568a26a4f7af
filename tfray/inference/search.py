"""The search as text sees it: minimum Bayes risk compares samples by their chrF."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from sacrebleu.metrics.chrf import CHRF

from tfray.config import GenerationConfig
from tfray.generation.generate import Models, generate
from tfray.generation.risk import Utility, least_risk
from tfray.generation.rows import Output, Request
from tfray.tokens.tokenizer import Tokenizer


def search_targets(
    models: Models, tokenizer: Tokenizer, sources: Sequence[Sequence[int] | Request], config: GenerationConfig
) -> list[Output]:
    """Return each source's output, as `generate` does; with search: mbr the samples of least risk."""
    outputs = generate(models, sources, config)
    if config.search != "mbr":
        return outputs
    utility = chrf_utility(tokenizer.decode_batch)
    return [least_risk(output, utility, config.n_best) for output in outputs]


def chrf_utility(
    decode_batch: Callable[[list[list[int]]], list[str]],
) -> Utility:
    """Return sentence chrF (0 to 100) of candidate ids against reference ids."""
    metric = CHRF()

    @functools.lru_cache(maxsize=4096)
    def text(ids: tuple[int, ...]) -> str:
        return decode_batch([list(ids)])[0]

    def utility(candidate: Sequence[int], reference: Sequence[int]) -> float:
        return metric.sentence_score(text(tuple(candidate)), [text(tuple(reference))]).score

    return utility
