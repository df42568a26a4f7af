"""One thread (tiny matrices gain nothing from more), lively random models, and the slow and obvious search."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.rows import Hypothesis, Request
from tfray.generation.soundness import contains
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

torch.set_num_threads(1)
VOCAB = 15
NEVER = float("-inf")


def lively_model(
    seed: int, vocab_size: int = VOCAB, max_length: int = 24, end: float = 0.6, **options: Any
) -> Transformer:
    """A random model whose targets vary and end now and then."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=2)
    architecture = Architecture(**{**sizes, **options}, vocab_size=vocab_size, max_length=max_length)
    model = Transformer(architecture).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 1 if name == "embedding.tokens.weight" else 2.5
            parameter += 0.3 * torch.randn_like(parameter)
        if hasattr(model.decoder_norm, "bias"):
            model.decoder_norm.bias += end * model.output_weight[EOS_ID]
    return model


def some_sources(count: int, longest: int = 9, seed: int = 5) -> list[list[int]]:
    choose = random.Random(seed)
    return [[*choose.choices(range(3, VOCAB), k=choose.randint(0, longest)), EOS_ID] for _ in range(count)]


@torch.no_grad()
def obvious_log_probs(
    models: list[Transformer], request: Request, ids: list[int], config: GenerationConfig
) -> tuple[Tensor, Tensor]:
    """Return what may follow ids, by running the whole target through the training model; and where its last
    layer looked at each position of it, (target, source)."""
    source = torch.tensor([list(request.source)])
    seen = []

    def look(module: Any, arguments: tuple) -> None:
        hidden, keys = arguments[:2]
        query = module.split(module.query(hidden))
        seen.append((query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1).mean(1)[0])

    handle = models[0].decoder[-1].cross_attention.register_forward_pre_hook(look)
    logits = [model(source, torch.tensor([[BOS_ID, *ids]]))[0, -1].double() for model in models]
    handle.remove()
    if len(logits) > 1:
        logits = [torch.stack([each.softmax(-1) for each in logits]).mean(0).log()]
    for token in set(ids):
        value = logits[0][token]
        penalty = config.repetition_penalty
        logits[0][token] = value / penalty if value > 0 else value * penalty
    log_probs = logits[0].log_softmax(-1)
    for token in range(len(log_probs)):
        after = [*ids, token]
        size = config.no_repeat_ngram
        grams = [tuple(after[start : start + size]) for start in range(len(after) - size + 1)] if size else []
        least = max(config.min_length, math.ceil(config.min_length_ratio * len(request.source)))
        if (
            token in (PAD_ID, BOS_ID, *config.suppress_tokens)
            or (token == EOS_ID and len(ids) < least)
            or len(set(grams)) < len(grams)
            or any(after[-len(phrase) :] == list(phrase) for phrase in request.must_not)
            or (len(ids) < len(request.prefix) and token != request.prefix[len(ids)])
        ):
            log_probs[token] = NEVER
    return log_probs, seen[0]


def limit_of(model: Transformer, request: Request, config: GenerationConfig) -> int:
    wanted = math.ceil(config.max_length_ratio * len(request.source)) + config.max_length_extra
    return min(wanted, model.architecture.max_length, config.max_length or 10**9)


def obvious_rank(score: float, length: int, attention: Tensor, config: GenerationConfig) -> float:
    base = length if config.length_normalization == "average" else (5 + length) / 6
    coverage = sum(math.log(min(1.0, float(total))) for total in attention.sum(0)) if config.coverage_penalty else 0
    return score / base**config.length_penalty + config.coverage_penalty * coverage


def obvious_missing(phrases: Sequence[Sequence[int]], ids: list[int]) -> int:
    """Return how many tokens of phrases, which have no token in common, are still to come."""
    waiting = [list(phrase) for phrase in phrases if not contains(ids, phrase)]
    begun = [count for phrase in waiting for count in range(len(phrase)) if ids[len(ids) - count :] == phrase[:count]]
    return sum(map(len, waiting)) - max(begun, default=0)


def obvious_deal(
    candidates: list[tuple[list[int], float, int]], phrases: Sequence[Sequence[int]], size: int, room: int
) -> tuple[list, list]:
    """Return those of (ids, score, token), the best first, that end, and the beginnings that go on: competing with
    those that have met as many tokens of the phrases, and dealt out in turn, the fullest first."""
    banks: dict[int, list] = {}
    for ids, score, token in candidates:
        missing = obvious_missing(phrases, [*ids, token])
        if missing == 0 or (token != EOS_ID and missing + 1 < room):
            banks.setdefault(missing, []).append((ids, score, token))
    ends = [candidate for candidate in banks.get(0, [])[:size] if candidate[2] == EOS_ID]
    open_ones = [[candidate for candidate in banks[missing] if candidate[2] != EOS_ID] for missing in sorted(banks)]
    dealt = []
    while len(dealt) < size and any(open_ones):
        dealt += [bank.pop(0) for bank in open_ones if bank]
    return ends, sorted(dealt[:size], key=lambda candidate: -candidate[1])


def obvious_search(
    models: Transformer | list[Transformer], source: list[int] | Request, config: GenerationConfig
) -> list[Hypothesis]:
    """Beam search on lists, to the longest length: greedy with a beam of 1."""
    models = [models] if isinstance(models, Transformer) else models
    request = source if isinstance(source, Request) else Request(source)
    beginnings: list[tuple[list[int], float]] = [([], 0.0)]
    ended: list[Hypothesis] = []
    attention = torch.empty(0)
    limit = limit_of(models[0], request, config)
    for step in range(limit):
        candidates = []
        seen = []
        for place, (ids, score) in enumerate(beginnings):
            log_probs, attention = obvious_log_probs(models, request, ids, config)
            seen.append(attention)
            candidates += [(-score - float(more), place, token) for token, more in enumerate(log_probs) if more > NEVER]
        candidates.sort()
        attention_of = {tuple(ids): attention for (ids, _), attention in zip(beginnings, seen, strict=True)}
        extended = [(beginnings[place][0], -negative, token) for negative, place, token in candidates]
        ends, going_on = obvious_deal(extended, request.must, config.beam_size, limit - step)
        for ids, score, _ in ends:
            rank = obvious_rank(score, len(ids) + 1, attention_of[tuple(ids)], config)
            ended.append(Hypothesis(ids, score, True, rank))
        if config.beam_size == 1 and ended:
            break
        if config.early_stopping == "beam" and len(ended) >= config.beam_size:
            break
        beginnings = [([*ids, token], score) for ids, score, token in going_on]
        if not beginnings:
            break
    ended.sort(key=lambda hypothesis: -hypothesis.ranking_score)
    unfinished = []
    for ids, score in beginnings:
        if len(ended) < config.n_best and not obvious_missing(request.must, ids):
            attention = obvious_log_probs(models, request, ids[:-1], config)[1]
            unfinished.append(Hypothesis(ids, score, False, obvious_rank(score, len(ids), attention, config)))
    unfinished.sort(key=lambda hypothesis: -hypothesis.ranking_score)
    return [*ended, *unfinished][: config.n_best]


@pytest.fixture(scope="session")
def lively():
    return lively_model


@pytest.fixture(scope="session")
def obvious():
    return obvious_search


@pytest.fixture(scope="session")
def obvious_next():
    return obvious_log_probs


@pytest.fixture(scope="session")
def sources_of():
    return some_sources
