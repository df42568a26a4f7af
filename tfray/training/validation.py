"""Validation while training: the loss over all workers, and what the model makes of validation sources.

weights ──► loss of all pairs, each worker a share           always here: no copy of the model is needed
        └─► decoding of up to valid_rows pairs ──► scores    here, each worker a share; or on an actor beside
                                                             the training, whose answer comes some steps later
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tfray.batches.batch import Batch, collate
from tfray.batches.plan import plan_pool
from tfray.batches.pool import read_shards
from tfray.config import BatchesConfig, GenerationConfig, TrainingConfig
from tfray.generation.generate import generate, networks_of
from tfray.generation.scoring import classify
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.scores import translation_scores
from tfray.tokens.shards import TokenFolder, read_pairs
from tfray.tokens.special import PAD_ID
from tfray.training.state import TrainState
from tfray.training.workers import gather_from_workers, sum_over_workers, world_size

Weights = dict[str, Tensor]
POLLED = 10
"""Calls of poll() of which one asks: workers have to agree on the answer, and it is called at every step."""


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

    def offer(self, step: int, weights: Weights) -> None:
        """Ask for the scores of a step's weights."""
        ...

    def poll(self, wait: bool) -> list[Finding]:
        """Return what came since the last call; with `wait`, all that was asked for and is still wanted."""
        ...


class Validation:
    """Validates on all training workers together: each method is to be called by every one of them.

        for finding in [*validation.poll(), *validation.validate(state, step)]: judge it, log it, write best/
        ...
        for finding in validation.finish(): the same, after the last step

    `validator` is for the worker of rank 0, where decoding is done beside the training.
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
    ) -> None:
        self.rank, self.workers, self.device = rank, world_size(), device
        self.has_data, self.is_beside, self.validator = tokens.has_split("valid"), is_beside, validator
        self.batches = load_validation(tokens, max_tokens, rank, self.workers)
        self.decodes = self.has_data and config.valid_rows > 0
        is_here = self.decodes and not is_beside
        self.decoder = Decoder(tokens, architecture, config, device) if is_here else None
        self.calls = 0

    def validate(self, state: TrainState, step: int) -> list[Finding]:
        """Return what is found of the state's (averaged) weights at once; scores from beside come by poll()."""
        begun = time.monotonic()
        weights = state.weights()
        metrics: dict[str, float] = {}
        if self.has_data:
            with state.averaged():
                loss = validation_loss(state.model, self.batches, self.device)
            metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
        if self.decoder is not None:
            mine = self.decoder.decode(weights, self.rank, self.workers)
            metrics |= self.decoder.scores(gather(mine))
        if self.validator is not None and self.decodes:
            self.validator.offer(step, weights)
        return [Finding(step, metrics, weights if self.rank == 0 else {}, time.monotonic() - begun)]

    def poll(self, wait: bool = False) -> list[Finding]:
        """Return what was found beside the training in the meantime, the same on every worker."""
        self.calls += 1
        if not (self.is_beside and self.decodes) or (self.calls % POLLED and not wait):
            return []
        found = self.validator.poll(wait) if self.validator is not None else []
        if self.workers == 1:
            return found
        shared: list = [[finding._replace(weights={}) for finding in found]]
        dist.broadcast_object_list(shared, src=0)
        return found if self.rank == 0 else shared[0]

    def finish(self) -> list[Finding]:
        """Return what is still to be found, after the last step."""
        return self.poll(wait=True)


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

    def decode(self, weights: Weights, rank: int = 0, workers: int = 1) -> list[str]:
        """Return the predictions of every so many-th pair, from this worker's on."""
        sources = self.sources[rank::workers]
        (network,) = networks_of(model_of(self.architecture, weights, self.device), self.search)
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
    counts = tokens.examples("valid")
    total = sum(counts)
    wanted = min(limit, total)
    chosen = np.arange(wanted) * total // max(1, wanted)
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    start = 0
    for path, count in zip(tokens.paths("valid"), counts, strict=True):
        rows = chosen[(chosen >= start) & (chosen < start + count)] - start
        if len(rows):
            table = read_pairs([path], ["source_ids", "target_ids"]).take(rows)
            sources += table["source_ids"].to_pylist()
            targets += table["target_ids"].to_pylist()
        start += count
    return sources, targets


def load_validation(tokens: TokenFolder, max_tokens: int, rank: int, workers: int) -> list[Batch]:
    """Return one worker's micro-batches of the validation shards; none where there are no shards.

    All workers get as many, for where the model is sharded they compute them together: what is missing in the last
    round is a micro-batch without labels, which counts nothing.
    """
    if not tokens.has_split("valid"):
        return []
    source, target = pairs = read_shards(tokens.paths("valid"))
    steps = plan_pool(*pairs.lengths, BatchesConfig(max_tokens=max_tokens, lanes=1), epoch=0, pool=0)
    batches = [collate(source.take(rows), target.take(rows)) for (rows,) in steps[rank::workers]]
    if len(batches) < math.ceil(len(steps) / workers):
        ((rows,), *_) = steps
        last = collate(source.take(rows), target.take(rows))
        batches.append(last._replace(label_ids=torch.full_like(last.label_ids, PAD_ID)))
    return batches


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    """Return the negative log-likelihood per target token in nats, the same on every worker."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        loss = model(batch.to(device)).negative_log_likelihood
        totals += torch.tensor([float(loss), batch.target_tokens], dtype=torch.float64)
    model.train()
    likelihood, tokens = sum_over_workers(totals).tolist()
    return likelihood / tokens
