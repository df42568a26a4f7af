"""What needs no search: scores of given targets, classes, embeddings, alignments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfray.generation.network import Network
from tfray.generation.processors import log_softmax
from tfray.tokens.special import BOS_ID

CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Score:
    """The log-probability of a target, in nats."""

    token_log_probs: list[float]
    """Of each token, eos last."""

    @property
    def log_prob(self) -> float:
        """Of the whole target."""
        return math.fsum(self.token_log_probs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return math.exp(-self.log_prob / len(self.token_log_probs))


def chunks(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Yield row numbers of like length together, the longest first."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        count = max(1, min(batch_rows, CHUNK_TOKENS // max(1, lengths[order[start]])))
        yield order[start : start + count]
        start += count


@torch.inference_mode()
def score(
    network: Network, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_rows: int = 128
) -> list[Score]:
    """Return the scores of targets, given without bos; the last token of each should be eos."""
    scores: list[Score | None] = [None] * len(sources)
    for rows, hidden, _ in force(network, sources, targets, batch_rows):
        # Row by row: logits of all positions at once would be the largest tensor by far.
        for row, states in zip(rows, hidden, strict=True):
            labels = torch.tensor(targets[row], device=network.device)
            log_probs = log_softmax(network.logits(states[: len(labels)]).float())
            scores[row] = Score(log_probs.gather(1, labels[:, None]).squeeze(1).tolist())
    return [found for found in scores if found is not None]


@torch.inference_mode()
def align(
    network: Network, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_rows: int = 128
) -> list[Tensor]:
    """Return how much each target token looked at each source token when it was predicted, (target, source) of
    each pair: the cross-attention, its mean over layers and heads; each row of it sums to 1."""
    alignments: list[Tensor] = [torch.empty(0)] * len(sources)
    for rows, _, looks in force(network, sources, targets, batch_rows, with_looks=True):
        assert looks is not None
        for place, row in enumerate(rows):
            alignments[row] = looks[place, : len(targets[row]), : len(sources[row])].cpu().clone()
    return alignments


def force(
    network: Network,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_rows: int,
    with_looks: bool = False,
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Yield rows, the last hidden states of their targets (rows, target, d_model), and their attention if wanted,
    (rows, target, source)."""
    lengths = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    for rows in chunks(lengths, batch_rows):
        memory, source_lengths = network.encode([sources[row] for row in rows])
        begun = [[BOS_ID, *targets[row][:-1]] for row in rows]
        yield rows, *network.decode(begun, memory, source_lengths, with_looks)


@torch.inference_mode()
def classify(network: Network, sources: Sequence[Sequence[int]], label_ids: Sequence[int], batch_rows: int) -> Tensor:
    """Return each source's probabilities over the labels from one decoder step, (sources, labels)."""
    probabilities = torch.empty(len(sources), len(label_ids))
    labels = torch.tensor(label_ids, device=network.device)
    for rows in chunks([len(source) for source in sources], batch_rows):
        memory, lengths = network.encode([sources[row] for row in rows])
        hidden, _ = network.decode([[BOS_ID]] * len(rows), memory, lengths)
        logits = network.logits(hidden[:, 0].contiguous())[:, labels]
        probabilities[rows] = logits.float().softmax(-1).cpu()
    return probabilities


@torch.inference_mode()
def embed(network: Network, sources: Sequence[Sequence[int]], batch_rows: int = 128) -> Tensor:
    """Return the mean of each source's memory over its tokens, eos included, in fp32, (sources, d_model)."""
    embeddings = torch.empty(len(sources), network.architecture.d_model)
    for rows in chunks([len(source) for source in sources], batch_rows):
        memory, lengths = network.encode([sources[row] for row in rows])
        for row, tokens in zip(rows, memory.float().split(lengths), strict=True):
            embeddings[row] = tokens.mean(0).cpu()
    return embeddings
