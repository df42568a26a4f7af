"""The tokenize job without Ray: its stages in this process, their items in an order that a test chooses."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tfray.tokens import learning as learning_module
from tfray.tokens import tokenize as job_module
from tfray.tokens import verdicts as verdicts_module
from tfray.units.plan import plan_units

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a job as so many workers would, their items in a random order, cut into units of at most so many rows."""

    def run(job: Any, workers: int = 1, seed: int = 0, unit_rows: int = 7, most_units: int = 10_000) -> Any:
        def stream(
            items: Sequence[object], stage: type, arguments: tuple, cluster: object, *, shared: object = None
        ) -> Iterator[Any]:
            chance = random.Random(seed)
            stages = [stage(*arguments, *(() if shared is None else (shared,))) for _ in range(workers)]
            for item in chance.sample(list(items), len(items)):
                yield pickle.loads(pickle.dumps(chance.choice(stages)(item)))

        def plan(files: list, smallest: int, largest: int, **named: Any) -> list:
            return plan_units(files, 1, min(unit_rows, largest), wanted=most_units, **named)

        for module in (job_module, learning_module, verdicts_module):
            monkeypatch.setattr(module, "stream", stream)
        monkeypatch.setattr(job_module, "plan_units", plan)
        monkeypatch.setattr(job_module, "connected", lambda cluster: contextlib.nullcontext())
        return job_module.tokenize(job)

    return run
