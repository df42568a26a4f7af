"""A model folder in process: text in, text out, by the same engine as the predict job.

import tfray
model = tfray.load("out/training/best")
for result in model.generate(["A dog runs.", "Two men talk."], n_best=3):
    print(result.text, result.score, [other.text for other in result.n_best])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from tfray.checkpoint.folder import ModelFolder
from tfray.config import GenerationConfig
from tfray.corpus.clean import unusable
from tfray.corpus.normalize import normalize
from tfray.errors import InputError
from tfray.generation import scoring
from tfray.generation.generate import as_seen, networks_of
from tfray.generation.rows import Hypothesis, Output, Request
from tfray.generation.scoring import Score
from tfray.inference.search import search_targets
from tfray.tokens.special import EOS_ID

MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Target:
    """One text that the search found."""

    text: str
    score: float
    """Natural logarithm of its probability."""
    is_finished: bool
    """False where the longest length was reached before its end."""
    alignment: Tensor | None = None
    """Attention of each target token to each source token that the search saw, (target, source), ends included; of a
    source that was split piece by piece, each with its ends, and 0 from one to another; on request."""


@dataclass(frozen=True)
class Result:
    """What a source text gets: targets, the best first, or an error."""

    n_best: list[Target] = field(default_factory=list)
    error: str | None = None
    """`kind: message`; other texts are not affected."""
    truncated: bool = False

    @property
    def text(self) -> str | None:
        return self.n_best[0].text if self.n_best else None

    @property
    def score(self) -> float | None:
        return self.n_best[0].score if self.n_best else None

    @property
    def hit_max_length(self) -> bool:
        return bool(self.n_best) and not self.n_best[0].is_finished


class Model:
    """One model, or several that decide together, with their tokenizer."""

    def __init__(self, folders: list[ModelFolder], config: GenerationConfig, device: torch.device) -> None:
        if len({folder.tokenizer_json for folder in folders}) > 1:
            names = ", ".join(folder.folder for folder in folders)
            raise InputError(f"the model folders {names} have different tokenizers; an ensemble needs one")
        if len({folder.text for folder in folders}) > 1:
            names = ", ".join(folder.folder for folder in folders)
            raise InputError(f"the model folders {names} normalize text differently; an ensemble reads it in one way")
        self.folders, self.config, self.device = folders, config, device
        self.tokenizer = folders[0].tokenizer
        models = [folder.load_model().to(device) for folder in folders]
        self.networks = networks_of(models, config)
        self.longest = min(network.architecture.max_length for network in self.networks)

    @property
    def task(self) -> str:
        return self.folders[0].task

    def normalize(self, texts: Sequence[str | None]) -> list[str | None]:
        """Return texts as training read them."""
        return normalize(pa.array(texts, pa.string()), self.folders[0].text).to_pylist()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, eos at the end."""
        return [[*ids, EOS_ID] for ids in self.ids_of(texts)]

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without an end."""
        return self.tokenizer.encode_batch([text or "" for text in self.normalize(texts)])

    def generate(
        self,
        texts: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        must: Sequence[Sequence[str]] | None = None,
        must_not: Sequence[Sequence[str]] | None = None,
        alignments: bool = False,
        **options: Any,
    ) -> list[Result]:
        """Return what each source text gets.

        prefixes: how each target begins; must, must_not: phrases that each target contains or does not.
        Options are those of GenerationConfig, such as beam_size=1, n_best=4, search="sample".
        """
        config = replace(self.config, **options)
        errors = [unusable("source", text, MAX_CHARACTERS) for text in self.normalize(texts)]
        usable = [row for row, error in enumerate(errors) if error is None]
        sources = self.encode([texts[row] for row in usable])
        requests = [
            Request(
                source,
                prefix=self.target_ids(prefixes[row]) if prefixes else (),
                must=[self.target_ids(phrase) for phrase in must[row]] if must else (),
                must_not=[self.target_ids(phrase) for phrase in must_not[row]] if must_not else (),
                number=row,
            )
            for row, source in zip(usable, sources, strict=True)
        ]
        outputs = search_targets(self.networks, self.tokenizer, requests, config)
        results = [Result(error=error) for error in errors]
        for row, request, output in zip(usable, requests, outputs, strict=True):
            seen = as_seen(request.source, self.longest, config) if alignments else []
            results[row] = self.result_of(output, seen)
        return results

    def target_ids(self, text: str) -> list[int]:
        """Return the ids of a target text, without its end."""
        return self.ids_of([text])[0]

    def result_of(self, output: Output, seen: list[Sequence[int]]) -> Result:
        """Return an output as text; with alignments where it is given what the search saw of the source."""
        texts = self.tokenizer.decode_batch([hypothesis.ids for hypothesis in output.hypotheses])
        looks = self.alignments(seen, output.hypotheses) if seen else [None] * len(texts)
        targets = [
            Target(text, hypothesis.score, hypothesis.is_finished, look)
            for text, hypothesis, look in zip(texts, output.hypotheses, looks, strict=True)
        ]
        return Result(targets, output.error, output.truncated)

    def alignments(self, seen: list[Sequence[int]], hypotheses: list[Hypothesis]) -> list[Tensor]:
        """Return the first model's attention for each hypothesis, to the pieces of its source."""
        parts = [part for hypothesis in hypotheses for part in hypothesis.pieces or (hypothesis,)]
        targets = [[*part.ids, *([EOS_ID] if part.is_finished else [])] for part in parts]
        found = iter(scoring.align(self.networks[0], seen * len(hypotheses), targets))
        return [torch.block_diag(*[next(found) for _ in seen]) for _ in hypotheses]

    def answers(self, texts: Sequence[str]) -> list[str]:
        """Return each text's best label, or its best target ('' where there is none)."""
        if self.task == "classification":
            return [next(iter(row)) for row in self.classify(texts)]
        return [result.text or "" for result in self.generate(texts)]

    def takes(self, text: str) -> bool:
        """Say whether a text is neither empty nor too long."""
        error = unusable("text", self.normalize([text])[0], MAX_CHARACTERS)
        return error is None and len(self.encode([text])[0]) <= self.longest

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Return the log-probability of each (source, target), whole and by token; the model is the first one."""
        sources = self.fitting([source for source, _ in pairs], "source")
        targets = self.fitting([target for _, target in pairs], "target")
        return scoring.score(self.networks[0], sources, targets, self.config.batch_rows)

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return each text's probability of every label, the most probable first; mean over the models."""
        labels = self.tokenizer.label_ids
        if not labels:
            raise InputError(f"{self.folders[0].folder!r} was trained for {self.task}: it has no labels to classify by")
        sources = self.fitting(texts, "text")
        found = [
            scoring.classify(network, sources, list(labels.values()), self.config.batch_rows)
            for network in self.networks
        ]
        rows = torch.stack(found).mean(0).tolist()
        return [dict(sorted(zip(labels, row, strict=True), key=lambda item: -item[1])) for row in rows]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of the encoder's memory over each text's tokens, (texts, d_model)."""
        return scoring.embed(self.networks[0], self.fitting(texts, "text"), self.config.batch_rows)

    def fitting(self, texts: Sequence[str], name: str) -> list[list[int]]:
        """Return the ids of texts; raises InputError where one is too long or empty."""
        for number, text in enumerate(self.normalize(texts)):
            error = unusable(name, text, MAX_CHARACTERS)
            if error is not None:
                raise InputError(f"{name} number {number}: {error}")
        found = self.encode(texts)
        for number, ids in enumerate(found):
            if len(ids) > self.longest:
                raise InputError(
                    f"{name} number {number} has {len(ids)} tokens, the model takes {self.longest}; shorten it"
                )
        return found
