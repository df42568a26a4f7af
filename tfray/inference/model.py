"""A model folder in process: text in, text out, by the same engine as the predict job.

import tfray
model = tfray.load("out/training/best")
for result in model.generate(["A dog runs.", "Two men talk."], n_best=3):
    print(result.text, result.score, [other.text for other in result.n_best])
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from tfray.checkpoint.folder import ModelFolder
from tfray.config import GenerationConfig, InferenceConfig
from tfray.config.rules import require
from tfray.corpus.clean import unusable
from tfray.corpus.normalize import normalize
from tfray.corpus.rows import unreadable
from tfray.errors import InputError
from tfray.generation import scoring
from tfray.generation.generate import networks_of
from tfray.generation.pieces import as_seen
from tfray.generation.rows import Hypothesis, Output, Request
from tfray.generation.scoring import Score
from tfray.inference.inputs import Targets, listed, listed_pairs, with_options
from tfray.inference.result import Result, Target
from tfray.inference.search import search_targets
from tfray.tokens.special import EOS_ID

logger = logging.getLogger(__name__)

MAX_CHARACTERS = InferenceConfig.max_characters


LongSources = Literal["refuse", "truncate", "split"]


class Usable(NamedTuple):
    """What of some texts a model takes."""

    ids: dict[int, list[int]]
    """Of each text that it takes, by its number."""
    errors: dict[int, str]
    """Why it does not take the others."""
    cut: int
    """Texts of which it takes the beginning."""


class Model:
    """One model, or several that decide together, with their tokenizer."""

    def __init__(self, folders: list[ModelFolder], config: GenerationConfig, device: torch.device) -> None:
        if len({folder.tokenizer_json for folder in folders}) > 1:
            names = ", ".join(folder.folder for folder in folders)
            raise InputError(
                f"the model folders {names} have different tokenizers; an ensemble needs one: load them apart"
            )
        if len({folder.text for folder in folders}) > 1:
            names = ", ".join(folder.folder for folder in folders)
            raise InputError(
                f"the model folders {names} normalize text differently; an ensemble reads it in one way: load them "
                "apart"
            )
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

    def judge(self, texts: Sequence[str | None], name: str) -> list[str | None]:
        """Return why texts cannot be used, `kind: message`, and None for each that can."""
        errors = [None if text is None else unreadable(f"the {name}", text) for text in texts]
        clean = self.normalize([None if error else text for text, error in zip(texts, errors, strict=True)])
        return [error or unusable(name, text, MAX_CHARACTERS) for text, error in zip(clean, errors, strict=True)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, eos at the end."""
        return [[*ids, EOS_ID] for ids in self.ids_of(texts)]

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without an end."""
        return self.tokenizer.encode_batch([text or "" for text in self.normalize(texts)])

    def generate(
        self,
        texts: Iterable[str],
        *,
        prefixes: Iterable[str | None] | None = None,
        must: Iterable[Iterable[str] | None] | None = None,
        must_not: Iterable[Iterable[str] | None] | None = None,
        alignments: bool = False,
        **options: Any,
    ) -> list[Result]:
        """Return what each source text gets.

        prefixes: how each target begins; must, must_not: phrases that each target contains or does not, a list of
        them for each text, in the tokens by which a text that begins with them is written: another spelling by tokens,
        as within a longer word, is not seen. Options are those of GenerationConfig, such as beam_size=1, n_best=4,
        search="sample". Raises InputError for options that cannot be, for lists that are not as long as texts, and for
        a model of labels.
        """
        texts = listed("texts", texts)
        targets = Targets.of(len(texts), prefixes, must, must_not)
        self.check_text("generate")
        config = self.changed(options)
        errors = [error or targets.error(row) for row, error in enumerate(self.judge(texts, "source"))]
        usable = [row for row, error in enumerate(errors) if error is None]
        sources = self.encode([texts[row] for row in usable])
        requests = [self.request(row, source, targets) for row, source in zip(usable, sources, strict=True)]
        outputs = search_targets(self.networks, self.tokenizer, requests, config)
        results = [Result(error=error) for error in errors]
        for row, request, output in zip(usable, requests, outputs, strict=True):
            seen = as_seen(request.source, self.longest, config) if alignments else []
            results[row] = self.result_of(output, seen)
        return results

    def request(self, row: int, source: list[int], targets: Targets) -> Request:
        """Return what the search is asked for a text."""
        prefix, phrases = targets.prefixes[row], (targets.must[row], targets.must_not[row])
        must, must_not = ([self.target_ids(phrase) for phrase in own] for own in phrases)
        return Request(source, self.target_ids(prefix) if prefix else (), must, must_not, row)

    def check_text(self, task: str) -> None:
        """Raise InputError where targets are labels and no text."""
        if self.tokenizer.label_ids:
            raise InputError(
                f"{self.folders[0].folder!r} was trained for labels: it cannot {task}; use classify or embed"
            )

    def changed(self, options: dict[str, Any]) -> GenerationConfig:
        """Return the model's configuration with other options; raises InputError for those of loading."""
        config = with_options(self.config, options)
        require(
            config.precision == self.config.precision,
            "precision",
            config.precision,
            f"is chosen where a model is loaded, and this one was with {self.config.precision!r}; load it again",
        )
        return config

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
        found = iter(scoring.align(self.networks[0], seen * len(hypotheses), targets, self.config.batch_rows))
        return [torch.block_diag(*[next(found) for _ in seen]) for _ in hypotheses]

    def answers(self, texts: Sequence[str]) -> list[str]:
        """Return each text's best label, or its best target ('' where there is none)."""
        if self.task == "classification":
            return ["" if row is None else next(iter(row)) for row in self.classify(texts)]
        return [result.text or "" for result in self.generate(texts)]

    def score(self, pairs: Iterable[tuple[str, str]]) -> list[Score | None]:
        """Return the log-probability of each (source, target), whole and by token; the model is the first one.

        None where a side cannot be used; the log says why. Raises InputError for a model of labels.
        """
        self.check_text("score")
        pairs = listed_pairs(pairs)
        sources, targets = (
            self.usable([pair[side] for pair in pairs], name) for side, name in enumerate(("source", "target"))
        )
        report(targets.errors | sources.errors, "pair", len(pairs))
        rows = [row for row in sources.ids if row in targets.ids]
        found = scoring.score(
            self.networks[0],
            [sources.ids[row] for row in rows],
            [targets.ids[row] for row in rows],
            self.config.batch_rows,
        )
        scores = dict(zip(rows, found, strict=True))
        return [scores.get(row) for row in range(len(pairs))]

    def classify(self, texts: Iterable[str]) -> list[dict[str, float] | None]:
        """Return each text's probability of every label, the most probable first; mean over the models.

        None where a text cannot be used; the log says why. Raises InputError for a model without labels.
        """
        texts = listed("texts", texts)
        labels = self.tokenizer.label_ids
        if not labels:
            raise InputError(
                f"{self.folders[0].folder!r} was trained for {self.task}: it has no labels to classify by; use generate"
            )
        sources = self.readable(texts)
        found = [
            scoring.classify(network, list(sources.values()), list(labels.values()), self.config.batch_rows)
            for network in self.networks
        ]
        rows = dict(zip(sources, torch.stack(found).mean(0).tolist(), strict=True))
        return [
            dict(sorted(zip(labels, rows[row], strict=True), key=lambda item: -item[1])) if row in rows else None
            for row in range(len(texts))
        ]

    def embed(self, texts: Iterable[str]) -> Tensor:
        """Return the mean of the encoder's memory over each text's tokens, (texts, d_model).

        A row of nan where a text cannot be used; the log says why.
        """
        texts = listed("texts", texts)
        sources = self.readable(texts)
        found = scoring.embed(self.networks[0], list(sources.values()), self.config.batch_rows)
        embeddings = found.new_full((len(texts), found.shape[1]), math.nan)
        embeddings[list(sources)] = found
        return embeddings

    def errors(self, texts: Iterable[str]) -> list[str | None]:
        """Return why the model's task cannot be done with texts, `kind: message`; None for each with which it can."""
        texts = listed("texts", texts)
        long_sources = unsplit(self.config.long_sources) if self.tokenizer.label_ids else self.config.long_sources
        errors = self.usable(texts, long_sources=long_sources).errors
        return [errors.get(row) for row in range(len(texts))]

    def readable(self, texts: Sequence[str]) -> dict[int, list[int]]:
        """Return the ids of texts that the model takes whole, or cut where that is wanted, by their numbers; the log
        says why it takes no others, and how many are cut."""
        found = self.usable(texts, long_sources=unsplit(self.config.long_sources))
        report(found.errors, "text", len(texts))
        if found.cut:
            logger.warning("%d of %d texts were cut to %d tokens", found.cut, len(texts), self.longest)
        return found.ids

    def usable(self, texts: Sequence[str], name: str = "text", long_sources: LongSources = "refuse") -> Usable:
        """Return the ids of texts that can be used, and why the others cannot; with `split` long ones stay long."""
        errors = {row: error for row, error in enumerate(self.judge(texts, name)) if error is not None}
        rows = [row for row in range(len(texts)) if row not in errors]
        found = dict(zip(rows, self.encode([texts[row] for row in rows]), strict=True))
        long = [] if long_sources == "split" else [row for row, ids in found.items() if len(ids) > self.longest]
        for row in long:
            if long_sources == "truncate":
                found[row] = [*found[row][: self.longest - 1], EOS_ID]
            else:
                length = len(found.pop(row))
                errors[row] = f"too_long: the {name} has {length} tokens, the model takes {self.longest}"
        return Usable(found, errors, len(long) if long_sources == "truncate" else 0)

    def __reduce__(self) -> tuple:
        """Where a copy is made, or a process is sent one, it is loaded again."""
        return type(self), (self.folders, self.config, self.device)


def unsplit(long_sources: LongSources) -> LongSources:
    """Return what becomes of long texts where only whole ones have an answer, as a label or a vector."""
    return "refuse" if long_sources == "split" else long_sources


def report(errors: dict[int, str], name: str, count: int) -> None:
    """Tell people what of some texts or pairs cannot be used."""
    if errors:
        first = min(errors)
        logger.warning("%d of %d %ss cannot be used; number %d: %s", len(errors), count, name, first, errors[first])
