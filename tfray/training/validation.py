"""Validation while training: the loss over all workers, and what the model makes of validation sources.

weights ──► loss of all pairs, each worker a share           always here: no copy of the model is needed
        └─► decoding of up to valid_rows pairs ──► scores    here, each worker a share; or on an actor beside
                                                             the training, whose answer comes some steps later
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tfray.batches.batch import Batch, collate
from tfray.batches.plan import plan_pool
from tfray.batches.pool import read_shards
from tfray.config import BatchesConfig, GenerationConfig, TrainingConfig
from tfray.generation.generate import Network, generate, networks_of
from tfray.generation.scoring import classify
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.scores import translation_scores
from tfray.tokens.shards import TokenFolder, read_columns
from tfray.tokens.special import PAD_ID
from tfray.training.state import TrainState
from tfray.training.workers import gather_from_workers, sum_over_workers, world_size

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
POLLED = 10
"""Calls of poll() of which one asks: workers have to agree on the answer, and it is called at every step."""
WAITED_SECONDS = 5.0
"""How long the end of training waits for scores before it looks whether it is to leave."""
DECODED_AT_ONCE = 128
"""Rows between two looks whether decoding is to be left."""


class Finding(NamedTuple):
    """What a validation found, or a part of it."""

    step: int
    """Of the weights that were judged."""
    metrics: dict[str, float]
    """loss and perplexity; bleu and chrf, or accuracy. Empty where there is no validation data."""
    weights: Weights
    """Those that were judged; only on the worker of rank 0."""
    seconds: float
    """How long training stood still for it, or the actor worked on it."""


class Validator(Protocol):
    """Decodes beside the training (training/validator.py)."""

    @property
    def awaited(self) -> int | None:
        """Step of the newest weights whose scores are still to come."""
        ...

    def offer(self, step: int, weights: Weights) -> None:
        """Ask for the scores of a step's weights."""
        ...

    def poll(self, seconds: float) -> list[Finding]:
        """Return what came since the last call, or comes in so many seconds, which only the end of training waits."""
        ...


def stay() -> None:
    """Go on with the validation."""


class Validation:
    """Validates on all training workers together: each method is to be called by every one of them.

        for finding in [*validation.poll(), *validation.validate(state, step)]: judge it, log it, write best/
        ...
        for finding in validation.finish(): the same, after the last step

    `validator` is for the worker of rank 0, where decoding is done beside the training. `between` is called by all
    workers now and then while they validate; what it raises, on all of them, leaves the validation.
    """

    def __init__(
        self,
        tokens: TokenFolder,
        architecture: Architecture,
        config: TrainingConfig,
        max_tokens: int,
        device: torch.device,
        rank: int,
        is_beside: bool = False,
        validator: Validator | None = None,
        between: Callable[[], None] = stay,
    ) -> None:
        self.rank, self.workers, self.device = rank, world_size(), device
        self.tokens, self.max_tokens, self.between = tokens, max_tokens, between
        self.has_data, self.is_beside, self.validator = tokens.has_split("valid"), is_beside, validator
        self.decodes = self.has_data and config.valid_rows > 0
        is_here = self.decodes and not is_beside
        self.decoder = Decoder(tokens, architecture, config, device) if is_here else None
        self.calls = 0
        self.awaited: int | None = None
        """Step of the newest weights whose scores are still to come from beside."""

    def validate(self, state: TrainState, step: int) -> list[Finding]:
        """Return what is found of the state's (averaged) weights at once; scores from beside come by poll()."""
        begun = time.monotonic()
        weights = state.weights()
        metrics: dict[str, float] = {}
        if self.has_data:
            with state.averaged():
                batches = read_validation(self.tokens, self.max_tokens, self.rank, self.workers)
                loss = validation_loss(state.model, batches, self.device, self.between)
            metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
        metrics |= self.scores(weights, step)
        return [Finding(step, metrics, weights if self.rank == 0 else {}, time.monotonic() - begun)]

    def score(self, state: TrainState, step: int) -> list[Finding]:
        """Return the scores of the state's (averaged) weights without the loss; those from beside come by poll()."""
        begun = time.monotonic()
        weights = state.weights()
        metrics = self.scores(weights, step)
        found = Finding(step, metrics, weights if self.rank == 0 else {}, time.monotonic() - begun)
        return [found] if metrics else []

    def scores(self, weights: Weights, step: int) -> dict[str, float]:
        """Return the scores of weights that are decoded here; ask for those from beside."""
        if self.decoder is not None:
            return self.decoder.scores(gather(self.decoder.decode(weights, self.rank, self.workers, self.between)))
        if self.is_beside and self.decodes:
            self.awaited = step
            if self.validator is not None:
                self.validator.offer(step, weights)
        return {}

    def poll(self, seconds: float = 0.0) -> list[Finding]:
        """Return what was found beside the training in the meantime, or is in so many seconds; the same on every
        worker."""
        self.calls += 1
        if self.awaited is None or (self.calls % POLLED and not seconds):
            return []
        found = self.validator.poll(seconds) if self.validator is not None else []
        shared: list = [[finding._replace(weights={}) for finding in found], self.validator and self.validator.awaited]
        if self.workers > 1:
            dist.broadcast_object_list(shared, src=0)
        self.awaited = shared[1]
        return found if self.rank == 0 else shared[0]

    def last_chance(self, step: int) -> list[Finding]:
        """Return what is found in a moment, before training ends at a step in its midst: of the weights of other steps
        nobody asks again."""
        found = self.poll(WAITED_SECONDS)
        if self.awaited not in (None, step):
            if self.validator is not None:
                told = "the weights of step %d get no scores: training ends before they are there"
                logger.warning(told, self.awaited)
            self.awaited = None
        return found

    def finish(self) -> Iterator[Finding]:
        """Yield what is still to be found, after the last step."""
        while self.awaited is not None:
            self.between()
            yield from self.poll(WAITED_SECONDS)


class Decoder:
    """Decodes validation sources with weights that it is given, and scores what comes out."""

    def __init__(
        self, tokens: TokenFolder, architecture: Architecture, config: TrainingConfig, device: torch.device
    ) -> None:
        self.architecture, self.task, self.device = architecture, tokens.task, device
        self.search = GenerationConfig(beam_size=config.valid_beam_size, precision=config.precision)
        self.tokenizer = tokens.tokenizer
        self.sources, targets = choose_pairs(tokens, config.valid_rows)
        if self.task == "classification":
            names = {number: name for name, number in self.tokenizer.label_ids.items()}
            self.references = [names[target[0]] for target in targets]
        else:
            self.references = self.tokenizer.decode_batch(targets)

    def decode(
        self, weights: Weights, rank: int = 0, workers: int = 1, between: Callable[[], None] = stay
    ) -> list[str]:
        """Return the predictions of every so many-th pair, from this worker's on; `between` is called now and then,
        by all workers as often."""
        (network,) = networks_of(model_of(self.architecture, weights, self.device), self.search)
        found: list[str] = []
        for start in range(0, len(self.sources), DECODED_AT_ONCE * workers):
            between()
            found += self.predict(network, self.sources[start + rank : start + DECODED_AT_ONCE * workers : workers])
        return found

    def predict(self, network: Network, sources: list[list[int]]) -> list[str]:
        """Return the predictions of sources."""
        if not sources:
            return []
        if self.task == "classification":
            labels = self.tokenizer.label_ids
            best = classify(network, sources, list(labels.values()), self.search.batch_rows).argmax(-1).tolist()
            return [self.tokenizer.labels[label] for label in best]
        outputs = generate(network, sources, self.search)
        return self.tokenizer.decode_batch([output.best.ids if output.hypotheses else [] for output in outputs])

    def judge(self, weights: Weights) -> tuple[dict[str, float], float]:
        """Return the scores of weights, all pairs decoded here, and the seconds that it took."""
        begun = time.monotonic()
        return self.scores(self.decode(weights)), time.monotonic() - begun

    def scores(self, predictions: list[str]) -> dict[str, float]:
        """Return BLEU and chrF, or the accuracy, of the predictions of all pairs."""
        if self.task == "classification":
            return {"accuracy": sum(map(str.__eq__, predictions, self.references)) / len(self.references)}
        scores = translation_scores(predictions, self.references)
        return {"bleu": scores["bleu"], "chrf": scores["chrf"]}


def model_of(architecture: Architecture, weights: Weights, device: torch.device) -> Transformer:
    """Return a network with these weights; no random number is drawn for it."""
    with torch.device("meta"):
        model = Transformer(architecture)
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def gather(mine: list[str]) -> list[str]:
    """Return all workers' rows in order, where worker w of W has the rows w, w + W, ..."""
    shares = gather_from_workers(mine)
    rows = [""] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows


def choose_pairs(tokens: TokenFolder, limit: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return sources and targets of at most `limit` validation pairs, spread evenly over all of them."""
    counts = tokens.pair_counts("valid")
    total = sum(counts)
    wanted = min(limit, total)
    chosen = np.arange(wanted) * total // max(1, wanted)
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    start = 0
    for path, count in zip(tokens.paths("valid"), counts, strict=True):
        rows = chosen[(chosen >= start) & (chosen < start + count)] - start
        if len(rows):
            table = read_columns(path, ["source_ids", "target_ids"]).take(rows)
            sources += table["source_ids"].to_pylist()
            targets += table["target_ids"].to_pylist()
        start += count
    return sources, targets


def read_validation(tokens: TokenFolder, max_tokens: int, rank: int, workers: int) -> Iterator[Batch]:
    """Yield one worker's micro-batches of the validation shards, of which one is held at a time.

    All workers get as many, for where the model is sharded they compute them together: what is missing in a shard's
    last round is a micro-batch without labels, which counts nothing.
    """
    for path in tokens.paths("valid"):
        source, target = pairs = read_shards([path])
        steps = plan_pool(*pairs.lengths, BatchesConfig(max_tokens=max_tokens, lanes=1), epoch=0, pool=0)
        own = steps[rank::workers]
        for (rows,) in own:
            yield collate(source.take(rows), target.take(rows))
        if len(own) < math.ceil(len(steps) / workers):
            ((rows,), *_) = steps
            batch = collate(source.take(rows), target.take(rows))
            yield batch._replace(label_ids=torch.full_like(batch.label_ids, PAD_ID))


@torch.no_grad()
def validation_loss(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, between: Callable[[], None] = stay
) -> float:
    """Return the negative log-likelihood per target token in nats, the same on every worker; `between` is called
    before each micro-batch."""
    totals = torch.zeros(2, dtype=torch.float64)
    model.eval()
    try:
        for batch in batches:
            between()
            loss = model(batch.to(device)).negative_log_likelihood
            totals += torch.tensor([float(loss), batch.target_tokens], dtype=torch.float64)
    finally:
        model.train()
    likelihood, tokens = sum_over_workers(totals).tolist()
    return likelihood / tokens
