"""The second step of a unit, on the device: ids -> what the model makes of them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tfray.generation import scoring
from tfray.generation.budget import is_shortage
from tfray.generation.draws import number_of
from tfray.generation.generate import NO_MEMORY, prepare
from tfray.generation.rows import Output, Request
from tfray.inference.assignment import Assignment
from tfray.inference.attempts import GUILTY
from tfray.inference.handover import Answered, Encoded
from tfray.inference.search import search_targets
from tfray.model.precision import prepare_cpu


class AnswerUnit:
    """Stage: loads the model once, from the object store."""

    def __init__(self, assignment: Assignment, weights: np.ndarray, on_gpu: bool, models: int = 1) -> None:
        """models: of the job, in all."""
        self.assignment = assignment
        self.device = torch.device("cuda" if on_gpu else "cpu")
        if self.device.type == "cpu":
            # One process a core is faster than one process with many threads.
            prepare_cpu(threads=assignment.inference.cpus_per_actor)
        self.tokenizer = assignment.folder.tokenizer
        model = assignment.folder.load_model(weights.tobytes())
        self.network = prepare(model.to(self.device), assignment.generation)
        if self.device.type == "cpu":
            here = (os.cpu_count() or 1) // assignment.inference.cpus_per_actor
            self.network.models_here = max(1, min(models, here))
        self.ways: dict[str, Callable[[Encoded, list[int]], list]] = {
            "generate": self.generate,
            "classify": self.classify,
            "score": self.score,
            "embed": self.embed,
        }

    def __call__(self, encoded: Encoded) -> Answered:
        began, clock, shortages = time.time(), time.monotonic(), self.network.shortages
        numbers = list(encoded.pieces)
        attempts = self.assignment.attempts(encoded.unit, "answer")

        def work(places: list[int]) -> dict[int, Any]:
            return self.answer(encoded, [numbers[place] for place in places])

        answers = attempts.carry_out(work, len(numbers)) if numbers else {}
        errors = encoded.errors | {numbers[place]: GUILTY for place in attempts.guilty}
        errors |= {row: answer for row, answer in answers.items() if isinstance(answer, str)}
        return Answered(
            encoded.unit,
            encoded.table,
            errors,
            encoded.notes,
            encoded.truncated,
            {row: sum(map(len, pieces)) for row, pieces in encoded.pieces.items()},
            {row: answer for row, answer in answers.items() if not isinstance(answer, str)},
            encoded.damage,
            f"{os.uname().nodename}:{os.getpid()}",
            began,
            time.monotonic() - clock,
            self.network.shortages - shortages,
        )

    def answer(self, encoded: Encoded, rows: list[int]) -> dict[int, Any]:
        """Return each row's answer, or the error that it ran into; rows that fail together are tried apart."""
        if not rows:
            return {}
        try:
            return dict(zip(rows, self.ways[self.assignment.task](encoded, rows), strict=True))
        except Exception as failure:
            if is_fatal(failure):
                os._exit(1)  # this process can do no more on its device; another one goes on
            error = describe(failure)
        self.free_memory()  # here, and not above: the failure holds on to its frames
        if len(rows) > 1:
            middle = len(rows) // 2
            return self.answer(encoded, rows[:middle]) | self.answer(encoded, rows[middle:])
        return self.answer_alone(encoded, rows[0], error)

    def answer_alone(self, encoded: Encoded, row: int, error: str) -> dict[int, Any]:
        """Return the answer of a row that has failed alone, tried once more, or its error."""
        try:
            return {row: self.ways[self.assignment.task](encoded, [row])[0]}
        except Exception:
            return {row: error}

    def free_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def generate(self, encoded: Encoded, rows: list[int]) -> list[list[Output] | str]:
        """Return the outputs of each row's pieces, or the error of one of them."""
        path, first = encoded.unit.path, encoded.unit.first_row
        requests = [
            Request(ids.tolist(), number=number_of(path, first + row, place))
            for row in rows
            for place, ids in enumerate(encoded.pieces[row])
        ]
        outputs = iter(search_targets(self.network, self.tokenizer, requests, self.assignment.generation))
        found = [[next(outputs) for _ in encoded.pieces[row]] for row in rows]
        return [next((output.error for output in each if output.error), None) or each for each in found]

    def classify(self, encoded: Encoded, rows: list[int]) -> list[np.ndarray]:
        sources, labels = self.sources(encoded, rows), list(self.tokenizer.label_ids.values())
        return list(scoring.classify(self.network, sources, labels, self.batch_rows).numpy())

    def score(self, encoded: Encoded, rows: list[int]) -> list[np.ndarray]:
        targets = [encoded.targets[row].tolist() for row in rows]
        scores = scoring.score(self.network, self.sources(encoded, rows), targets, self.batch_rows)
        return [np.array(score.token_log_probs) for score in scores]

    def embed(self, encoded: Encoded, rows: list[int]) -> list[np.ndarray]:
        return list(scoring.embed(self.network, self.sources(encoded, rows), self.batch_rows).numpy())

    def sources(self, encoded: Encoded, rows: list[int]) -> list[list[int]]:
        return [encoded.pieces[row][0].tolist() for row in rows]

    @property
    def batch_rows(self) -> int:
        return self.assignment.generation.batch_rows


def is_fatal(failure: Exception) -> bool:
    """Say whether a failure leaves the device unusable for this process."""
    return "CUDA error" in str(failure) and not isinstance(failure, torch.OutOfMemoryError)


def describe(failure: Exception) -> str:
    """Return a failure as an error of a row."""
    text = " ".join(str(failure).split())[:200]
    if is_shortage(failure):
        return f"{NO_MEMORY} ({text})"
    return f"failed: {type(failure).__name__}: {text}"
