"""The last step of a unit: answers -> text -> columns -> one file, and its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tfray import storage
from tfray.corpus.clean import kind_of
from tfray.errors import InputError
from tfray.generation.rows import Output, lines_of
from tfray.inference.assignment import Assignment
from tfray.inference.handover import Answered
from tfray.inference.sentences import join_sentences
from tfray.units.ledger import RECORDS, record_unit


class Generated(NamedTuple):
    """What task generate says of a row, by the names of its columns."""

    prediction: str
    score: float
    predictions: list[str]
    scores: list[float]
    n_segments: int
    truncated: bool
    hit_max_length: bool
    n_target_tokens: int


class WriteUnit:
    """Stage: loads the tokenizer once."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.tokenizer = assignment.folder.tokenizer
        self.labels = list(self.tokenizer.label_ids)
        ways: dict[str, Callable[[Answered], dict[str, dict[int, Any]]]] = {
            "generate": self.generate_values,
            "classify": self.classify_values,
            "score": self.score_values,
            "embed": self.embed_values,
        }
        self.own_values = ways[assignment.task]

    def __call__(self, answered: Answered) -> dict:
        """Publish a unit's file, then its record; return what progress shows of it."""
        unit = answered.unit
        record = self.assignment.attempts(unit, "write").carry_out_whole(lambda: self.commit(answered))
        if record is None:
            raise InputError(
                f"the process died several times while it wrote the predictions of {unit.path!r}, {unit.rows} rows "
                f"from row {unit.first_row}; lower inference.unit_rows, or give the machine more memory"
            )
        return record

    def commit(self, answered: Answered) -> dict:
        """Publish a unit's file, then its record."""
        values = self.values(answered)
        self.assignment.check_place()
        size = publish(self.assignment.place(answered.unit.output_name), self.table(answered, values))
        errors = Counter(map(kind_of, (answered.notes | answered.errors).values()))
        # Of text, nobody knows how many rows are lost: they count as one.
        cut_short = int(answered.damage is not None and not errors["damaged_file"])
        errors += Counter(damaged_file=cut_short)
        record = {
            "rows": len(answered.table),
            "cut_short": cut_short,
            "errors": dict(errors),
            "first_error": self.first_error(answered),
            "source_tokens": sum(answered.source_tokens.values()),
            "target_tokens": sum(count or 0 for count in values.get("n_target_tokens", [])),
            "bytes": size,
            "damage": answered.damage,
            "worker": answered.worker,
            "began": answered.began,
            "seconds": round(answered.seconds, 3),
            "shortages": answered.shortages,
        }
        record_unit(self.assignment.place(RECORDS), answered.unit, record)
        return {"unit_rows": answered.unit.rows, **record}

    def first_error(self, answered: Answered) -> str | None:
        """Return a unit's first error and its place, for people."""
        if answered.damage:
            return f"{answered.unit.path}: damaged_file: {answered.damage}"
        errors = answered.notes | answered.errors
        row = min(errors, default=None)
        return None if row is None else f"{answered.unit.path} row {answered.unit.first_row + row}: {errors[row]}"

    def table(self, answered: Answered, values: dict[str, list]) -> pa.Table:
        """Return the input's columns with those of the task beside them."""
        fields = self.assignment.added
        columns = [column_of(values[field.name], field.type) for field in fields]
        return pa.table([*answered.table.columns, *columns], schema=self.assignment.schema)

    def values(self, answered: Answered) -> dict[str, list]:
        """Return the values of every added column, a null for each row that has none."""
        rows = range(len(answered.table))
        own = self.own_values(answered)
        cut = set(answered.truncated)
        common = {
            "n_source_tokens": [answered.source_tokens.get(row) for row in rows],
            "error": [answered.errors.get(row) or answered.notes.get(row) for row in rows],
            "file": [answered.unit.path] * len(rows),
            "row": [answered.unit.first_row + row for row in rows],
            "truncated": [row in cut if row in answered.answers else None for row in rows],
        }
        return common | {name: [found.get(row) for row in rows] for name, found in own.items()}

    def generate_values(self, answered: Answered) -> dict[str, dict[int, Any]]:
        wanted = self.assignment.generation.n_best
        texts = iter(
            self.tokenizer.decode_batch(
                [
                    hypothesis.ids
                    for outputs in answered.answers.values()
                    for output in outputs
                    for hypothesis in output.hypotheses[:wanted]
                ]
            )
        )
        found: dict[int, Generated] = {}
        for row, outputs in answered.answers.items():
            parts = [[next(texts) for _ in output.hypotheses[:wanted]] for output in outputs]
            found[row] = generated_of(outputs, parts)
        names = enumerate(Generated._fields)
        return {name: {row: values[place] for row, values in found.items()} for place, name in names}

    def classify_values(self, answered: Answered) -> dict[str, dict[int, Any]]:
        wanted = self.assignment.generation.n_best
        values: dict[str, dict[int, Any]] = {name: {} for name in ("prediction", "score", "predictions", "scores")}
        for row, probabilities in answered.answers.items():
            order = np.argsort(-probabilities, kind="stable")[:wanted]
            values["predictions"][row] = [self.labels[label] for label in order]
            values["scores"][row] = probabilities[order].tolist()
            values["prediction"][row], values["score"][row] = self.labels[order[0]], float(probabilities[order[0]])
        return values

    def score_values(self, answered: Answered) -> dict[str, dict[int, Any]]:
        return {
            "score": {row: float(tokens.sum()) for row, tokens in answered.answers.items()},
            "token_scores": {row: tokens.tolist() for row, tokens in answered.answers.items()},
            "n_target_tokens": {row: len(tokens) for row, tokens in answered.answers.items()},
        }

    def embed_values(self, answered: Answered) -> dict[str, dict[int, Any]]:
        return {"embedding": answered.answers}


def generated_of(outputs: list[Output], parts: list[list[str]]) -> Generated:
    """Return what a row gets of its pieces' outputs and their texts."""
    predictions, scores = join_parts(parts, outputs)
    return Generated(
        predictions[0],
        scores[0],
        predictions,
        scores,
        n_segments=len(outputs),
        truncated=any(output.truncated for output in outputs),
        hit_max_length=any(output.hit_max_length for output in outputs),
        n_target_tokens=sum(len(output.best.ids) + output.best.is_finished for output in outputs),
    )


def join_parts(parts: list[list[str]], outputs: list[Output]) -> tuple[list[str], list[float]]:
    """Return the n-th texts of all pieces as one, and the sums of their scores; of a piece that has fewer, its last."""
    pieces = [
        [(text, hypothesis.score) for text, hypothesis in zip(texts, output.hypotheses, strict=False)]
        for texts, output in zip(parts, outputs, strict=True)
    ]
    lines = lines_of(pieces)
    return (
        [join_sentences([text for text, _ in line]) for line in lines],
        [sum(score for _, score in line) for line in lines],
    )


def column_of(values: list, kind: pa.DataType) -> pa.Array:
    """Return values as a column of a type."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    # Through one buffer: Arrow would look at every number of every vector, and takes no halves at all.
    width, number = kind.list_size, kind.value_type.to_pandas_dtype()
    rows = np.zeros((len(values), width), number)
    for place, vector in enumerate(values):
        if vector is not None:
            rows[place] = vector
    missing = pa.array([vector is None for vector in values], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind, mask=missing)


def publish(path: str, table: pa.Table) -> int:
    """Write a unit's file; return its bytes."""
    storage.publish_table(path, table)
    return storage.file_size(path)
