"""Long sources in pieces: how they are cut, and how what the pieces got is joined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from tfray.config import GenerationConfig
from tfray.generation.draws import number_of
from tfray.generation.rows import Hypothesis, Request, lines_of
from tfray.tokens.special import EOS_ID


def as_seen(source: Sequence[int], longest: int, config: GenerationConfig) -> list[Sequence[int]]:
    """Return a source as the search sees it: whole, cut to the longest, or in pieces."""
    if len(source) <= longest:
        return [source]
    return split_source(source, longest) if config.long_sources == "split" else [[*source[: longest - 1], EOS_ID]]


def split_request(request: Request, row: int, pieces: Sequence[Sequence[int]]) -> list[Request]:
    """Return a long row's pieces as requests; the first has its prefix, and each has its own chance."""
    number = row if request.number is None else request.number
    return [
        replace(request, source=part, prefix=() if place else request.prefix, number=number_of(number, place))
        for place, part in enumerate(pieces)
    ]


def split_source(source: Sequence[int], longest: int) -> list[Sequence[int]]:
    """Return a long source in pieces of about equal length, each with its own eos."""
    body = list(source[:-1]) if source[-1] == EOS_ID else list(source)
    count = -(-len(body) // (longest - 1))
    cuts = [len(body) * number // count for number in range(count + 1)]
    return [[*body[start:stop], EOS_ID] for start, stop in itertools.pairwise(cuts)]


def join(pieces: list[list[Hypothesis]]) -> list[Hypothesis]:
    """Return hypotheses of a whole source, the n-th of all pieces one after another; none where a piece has none."""
    return [
        Hypothesis(
            [token for part in parts for token in part.ids],
            sum(part.score for part in parts),
            all(part.is_finished for part in parts),
            sum(part.ranking_score for part in parts),
            parts,
        )
        for parts in lines_of(pieces)
    ]
