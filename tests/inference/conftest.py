"""The predict job without Ray: its steps in this process, the units in an order that a test chooses."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tfray.checkpoint.folder import save_model_folder
from tfray.config import GenerationConfig, InferenceConfig, ModelConfig, PredictJob, TokensConfig
from tfray.inference import planning, steps
from tfray.inference import predict as job_module
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens.tokenizer import train_tokenizer
from tfray.units.plan import plan_units
from tfray.units.stream import Step

WORDS = "one two three four five six seven eight nine ten"
Run = Callable[..., pa.Table]


def make_model(folder: Path, labels: list[str] | None = None, max_length: int = 32, width: int = 32) -> str:
    """Write a model folder with random weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([WORDS] * 3, TokensConfig(vocab_size=320), labels or [])
    sizes = ModelConfig(preset="tiny", d_model=width, num_heads=2, d_ff=64, encoder_layers=1, decoder_layers=1)
    model = Transformer(resolve(sizes, tokenizer.vocab_size, max_length))
    task = "classification" if labels else "translation"
    save_model_folder(str(folder), model.state_dict(), model.architecture, tokenizer.json, task, {})
    return str(folder)


def make_job(model_folder: str, source: Any, out: Any, **settings: Any) -> PredictJob:
    """Return a quick job; settings of generation and inference are found by their names."""
    names = {kind: kind.__dataclass_fields__ for kind in (GenerationConfig, InferenceConfig)}
    parts = {
        kind: {name: settings.pop(name) for name in list(settings) if name in fields} for kind, fields in names.items()
    }
    search = {"beam_size": 2, "max_length_extra": 5, "precision": "fp32", **parts[GenerationConfig]}
    paths = [str(path) for path in source] if isinstance(source, list) else str(source)
    return PredictJob(
        model_folder=model_folder,
        input=paths,
        out=str(out),
        generation=GenerationConfig(**search),
        inference=InferenceConfig(**parts[InferenceConfig]),
        **settings,
    )


def read_output(out: Any) -> pa.Table:
    """Return all rows of an output, in the order of its files."""
    return pq.read_table(out, partitioning=None)


class Death(BaseException):
    """Stands for the end of a worker's process."""


class Worker:
    """An actor of a step: where it dies, another one takes the same item, as in Ray."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.start()

    def start(self) -> None:
        shared = () if self.step.shared is None else (self.step.shared,)
        self.stage = self.step.stage(*self.step.arguments, *shared)

    def work(self, item: object) -> Any:
        for _ in range(50):
            try:
                return pickle.loads(pickle.dumps(self.stage(item)))
            except Death:
                self.start()
        raise AssertionError("no end")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def label_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("labels"), ["bad", "good", "so so"])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Carries a job out, its units of at most so many rows in a random order; returns the rows of the output."""

    def run(job: PredictJob, seed: int = 0, unit_rows: int = 7, most_units: int | None = None) -> pa.Table:
        def flow(items: Sequence[object], stages: list[Step], waiting: int) -> Iterator[Any]:
            assert waiting > 0
            workers = [Worker(step) for step in stages]
            for item in random.Random(seed).sample(list(items), len(items))[:most_units]:
                for worker in workers:
                    item = worker.work(item)
                yield item
            if most_units is not None:
                raise KeyboardInterrupt

        def plan(files: list, smallest: int, largest: int, **named: Any) -> list:
            return plan_units(files, 1, min(unit_rows, largest), wanted=1, **named)

        monkeypatch.setattr(job_module, "flow", flow)
        monkeypatch.setattr(planning, "plan_units", plan)
        monkeypatch.setattr(steps, "cluster_total", lambda resource: 2.0 if resource == "CPU" else 0.0)
        monkeypatch.setattr(steps, "node_cpus", lambda: [2.0])
        monkeypatch.setattr(job_module, "connected", lambda cluster: contextlib.nullcontext())
        return read_output(job_module.predict(job))

    return run
