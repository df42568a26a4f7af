"""What needs no search: scores of given targets, classes, embeddings, alignments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfray.generation.budget import SHORTAGES, is_shortage, most_rows, recover
from tfray.generation.network import Network
from tfray.generation.processors import normalize
from tfray.tokens.special import BOS_ID

CHUNK_TOKENS, GPU_CHUNK_TOKENS = 4096, 32_768
LOGITS = 1 << 28
"""At a time on a GPU, which would be waited for after each row otherwise."""


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
        """exp of the mean negative log-probability of a token; nan where there is none."""
        if not self.token_log_probs:
            return math.nan
        return math.exp(-self.log_prob / len(self.token_log_probs))


def chunks(lengths: Sequence[int], most: int, tokens: int) -> Iterator[list[int]]:
    """Yield row numbers of like length together, the longest first; so many rows and tokens at most."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        count = max(1, min(most, tokens // max(1, lengths[order[start]])))
        yield order[start : start + count]
        start += count


def work_through(network: Network, lengths: Sequence[int], batch_rows: int, work: Callable[[list[int]], None]) -> None:
    """Do work on all rows, a chunk at a time; where memory runs out, on half of it."""
    tokens = CHUNK_TOKENS if network.device.type == "cpu" else GPU_CHUNK_TOKENS
    waiting = [*chunks(lengths, most_rows(batch_rows, network.device), tokens)][::-1]
    while waiting:
        rows = waiting.pop()
        try:
            work(rows)
            continue
        except SHORTAGES as error:
            if len(rows) == 1 or not is_shortage(error):
                raise
        recover(network, len(rows))
        middle = len(rows) // 2
        waiting += [rows[middle:], rows[:middle]]


@torch.inference_mode()
def score(
    network: Network, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_rows: int = 0
) -> list[Score]:
    """Return the scores of targets, given without bos; the last token of each should be eos.

    The score of a target that a search found is the one that it had there: in fp32 on one CPU core to the last bit,
    otherwise in fp32 to 1e-4; in bf16 and int8 only nearly, for what is rounded between products differs where sums do.
    """
    scores: list[Score | None] = [None] * len(sources)

    def work(rows: list[int]) -> None:
        hidden, _ = force(network, sources, targets, rows)
        length = hidden.shape[1]
        # Row by row, on a GPU up to LOGITS: those of all positions at once would be the largest tensor by far.
        on_cpu = network.device.type == "cpu"
        count = 1 if on_cpu else max(1, LOGITS // (length * network.architecture.vocab_size))
        for start in range(0, len(rows), count):
            own = [targets[row] for row in rows[start : start + count]]
            places = [row * length + place for row, target in enumerate(own) for place in range(len(target))]
            index, labels = (
                torch.tensor(numbers, dtype=torch.long, device=network.device)
                for numbers in (places, [*itertools.chain(*own)])
            )
            found = normalize(network.logits(hidden[start : start + count].flatten(0, 1)[index]).float())
            log_probs = iter((found.scores.gather(1, labels[:, None]) - found.log_sums).squeeze(1).tolist())
            for row, target in zip(rows[start : start + count], own, strict=True):
                scores[row] = Score(list(itertools.islice(log_probs, len(target))))

    work_through(network, pair_lengths(sources, targets), batch_rows, work)
    return [found for found in scores if found is not None]


@torch.inference_mode()
def align(
    network: Network, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_rows: int = 0
) -> list[Tensor]:
    """Return how much each target token looked at each source token when it was predicted, (target, source) of
    each pair: the cross-attention, its mean over layers and heads; each row of it sums to 1."""
    alignments: list[Tensor] = [torch.empty(0)] * len(sources)

    def work(rows: list[int]) -> None:
        _, attention_weights = force(network, sources, targets, rows, with_attention_weights=True)
        assert attention_weights is not None
        for row, own in zip(rows, attention_weights.cpu(), strict=True):
            alignments[row] = own[: len(targets[row]), : len(sources[row])].clone()

    work_through(network, pair_lengths(sources, targets), batch_rows, work)
    return alignments


def pair_lengths(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[int]:
    """Return the longer length of each pair."""
    return [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]


def force(
    network: Network,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    rows: list[int],
    with_attention_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the last hidden states of some rows' targets (rows, target, d_model), and their attention if wanted,
    (rows, target, source)."""
    memory, lengths = network.encode([sources[row] for row in rows])
    return network.decode([[BOS_ID, *targets[row][:-1]] for row in rows], memory, lengths, with_attention_weights)


@torch.inference_mode()
def classify(network: Network, sources: Sequence[Sequence[int]], label_ids: Sequence[int], batch_rows: int) -> Tensor:
    """Return each source's probabilities over the labels from one decoder step, (sources, labels)."""
    probabilities = torch.empty(len(sources), len(label_ids), dtype=torch.float32, device="cpu")
    labels = torch.tensor(label_ids, device=network.device)

    def work(rows: list[int]) -> None:
        memory, lengths = network.encode([sources[row] for row in rows])
        hidden, _ = network.decode([[BOS_ID]] * len(rows), memory, lengths)
        logits = network.logits(hidden[:, 0].contiguous())[:, labels]
        probabilities[rows] = logits.float().softmax(-1).cpu()

    work_through(network, [len(source) for source in sources], batch_rows, work)
    return probabilities


@torch.inference_mode()
def embed(network: Network, sources: Sequence[Sequence[int]], batch_rows: int = 0) -> Tensor:
    """Return the mean of each source's memory over its tokens, eos included, in fp32, (sources, d_model)."""
    embeddings = torch.empty(len(sources), network.architecture.d_model, dtype=torch.float32, device="cpu")

    def work(rows: list[int]) -> None:
        memory, lengths = network.encode([sources[row] for row in rows])
        embeddings[rows] = torch.stack([tokens.mean(0) for tokens in memory.float().split(lengths)]).cpu()

    work_through(network, [len(source) for source in sources], batch_rows, work)
    return embeddings
