"""The gate before int8: how much worse a model becomes on rows with references, and a refusal where that is too much.

Measured in BLEU, or for a model of labels in percent of right ones, by decoding the same rows in fp32 and in int8.
What needs torch is imported when it is needed: other precisions begin without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from tfray import storage
from tfray.checkpoint.folder import ModelFolder
from tfray.config import GenerationConfig, PredictJob, as_list
from tfray.corpus.columns import TARGET_NAMES
from tfray.corpus.parquet import is_text
from tfray.errors import InputError
from tfray.inference.assignment import Assignment
from tfray.inference.planning import plan_rows
from tfray.inference.sample import sample_rows
from tfray.units.plan import Unit

if TYPE_CHECKING:
    from tfray.inference.model import Model

logger = logging.getLogger(__name__)

QUALITY = "_quality.json"
ROWS = 500


class Comparison(NamedTuple):
    """What int8 costs on some rows."""

    metric: str
    rows: int
    reference: float
    """Metric of fp32."""
    found: float
    """Metric of int8."""
    agreement: float
    """Share of rows that get the same text in both."""

    @property
    def loss(self) -> float:
        return self.reference - self.found

    def __str__(self) -> str:
        return (
            f"int8: {self.metric} {self.found:.2f}, fp32: {self.reference:.2f}, on {self.rows:,} rows, of which "
            f"{self.agreement:.1%} get the same text"
        )


def compare(folders: list[ModelFolder], config: GenerationConfig, pairs: Sequence[tuple[str, str]]) -> Comparison:
    """Return what int8 costs on pairs of source and reference; raises InputError where none of them can be used."""
    import torch

    from tfray.inference.model import Model

    cpu = torch.device("cpu")
    exact, quantized = (Model(folders, replace(config, precision=name), cpu) for name in ("fp32", "int8"))
    errors = exact.errors([source for source, _ in pairs])
    usable = [pair for pair, error in zip(pairs, errors, strict=True) if error is None and isinstance(pair[1], str)]
    if not usable:
        raise InputError("none of the rows on which the quality of int8 is to be measured can be used; name others")
    sources, references = ([*side] for side in zip(*usable, strict=True))
    check_labels(exact, references)
    texts, others = exact.answers(sources), quantized.answers(sources)
    metric = "accuracy" if exact.task == "classification" else "BLEU"
    lowercase = metric == "BLEU" and folders[0].text.lowercase
    scores = [quality(metric, found, references, lowercase=lowercase) for found in (texts, others)]
    return Comparison(metric, len(usable), scores[0], scores[1], sum(map(str.__eq__, texts, others)) / len(usable))


def check_labels(model: Model, references: list[str]) -> None:
    """Raise InputError where none of the references is a label of a model of labels: nothing could be right."""
    labels = model.tokenizer.label_ids
    if labels and not {*labels} & {*references}:
        raise InputError(
            f"generation.precision='int8': none of the references ({shown(references)}) is a label of the model "
            f"({shown(labels)}); name files whose target column has these names by inference.quality_data, or use bf16 "
            "or fp32"
        )


def shown(names: Iterable[str]) -> str:
    """Return some of different names."""
    return ", ".join([*dict.fromkeys(names)][:5])


def quality(metric: str, texts: list[str], references: list[str], *, lowercase: bool = False) -> float:
    """Return BLEU, or the percentage of texts that are as their references."""
    from tfray.scores import translation_scores

    scores = translation_scores(texts, references, lowercase=lowercase)
    return scores["bleu"] if metric == "BLEU" else 100 * scores["exact_match"]


def require_quality(comparison: Comparison, most_loss: float) -> None:
    """Raise InputError where int8 loses more than a limit."""
    logger.info("%s", comparison)
    if comparison.loss > most_loss:
        raise InputError(
            f"generation.precision='int8' loses {comparison.loss:.2f} {comparison.metric} against fp32, more than "
            f"generation.most_loss={most_loss:g} allows ({comparison}); use bf16 or fp32, or raise the limit"
        )


def check_quality(job: PredictJob, units: list[Unit], assignment: Assignment) -> Comparison | None:
    """Return what int8 costs, measured now or by an earlier start; None in other precisions.

    Raises InputError where it costs too much, or nothing is there to measure it on.
    """
    if job.generation.precision != "int8" or not units:
        return None
    path = assignment.place(QUALITY)
    if storage.exists(path):
        comparison = Comparison(**storage.read_json(path))
    else:
        from tfray.model.precision import prepare_cpu

        prepare_cpu(threads=1)
        comparison = compare([assignment.folder], job.generation, find_pairs(job, units, assignment))
    require_quality(comparison, job.generation.most_loss)
    return comparison


def find_pairs(job: PredictJob, units: list[Unit], assignment: Assignment) -> list[tuple[str, str]]:
    """Return rows with references: of inference.quality_data, or of the input where it has some."""
    rows, source, target = assignment.rows, assignment.source, assignment.target
    if job.inference.quality_data:
        plan = plan_rows(job, assignment.folder, "score", as_list(job.inference.quality_data))
        units, rows, source, target = plan.units, plan.rows, plan.texts.source, plan.texts.target
    target = target or next(
        (name for name in TARGET_NAMES if name in rows.names and is_reference(rows.field(name).type)), None
    )
    if target is None:
        raise InputError(
            "generation.precision='int8' is used only where its loss of quality was measured, and the input has no "
            "column target; name files with source and target by inference.quality_data, or use bf16 or fp32"
        )
    table = sample_rows(units, rows, {source, target}, ROWS).table.select([source, target])
    sources, targets = (column.cast(pa.string()).to_pylist() for column in table.columns)
    return [(text, reference) for text, reference in zip(sources, targets, strict=True) if text and reference]


def is_reference(kind: pa.DataType) -> bool:
    """Say whether a column may hold references: texts, or labels that are numbers."""
    return is_text(kind) or pa.types.is_integer(kind)
