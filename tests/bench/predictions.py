"""What the benchmarks of prediction share: texts, a model, a run of the command, and what its records say."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.processes import Measured, measure
from tests.bench.text import prose_lines

TARGET = 24  # tokens of every target
VOCAB = 8000
LONGEST_TEXT = 200  # characters


def texts(arguments: argparse.Namespace, count: int) -> list[str]:
    """Return so many source texts."""
    if arguments.data:
        tables = [pq.read_table(path, columns=["source"]) for path in arguments.data]
        found = pa.concat_tables(tables)["source"].to_pylist()
    else:
        found = list(itertools.islice((line[:LONGEST_TEXT] for line in prose_lines()), count))
    return list(itertools.islice(itertools.cycle(found), count))


def write_model(folder: Path, size: str, lines: list[str]) -> Path:
    """Write a model folder with the weights that `make_marian` gives a size."""
    from tests.bench.twins import make_marian, ours_from_marian
    from tfray.checkpoint.folder import save_model_folder
    from tfray.config import TokensConfig
    from tfray.tokens.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(lines[:20_000], TokensConfig(vocab_size=VOCAB), [])
    model = ours_from_marian(make_marian(size, tokenizer.vocab_size))
    place = folder / f"model-{size}"
    save_model_folder(str(place), model.state_dict(), model.architecture, tokenizer.json, "translation", {})
    return place


def write_rows(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"source": lines, "id": range(len(lines))}), path, row_group_size=1000)
    return path


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the search, the same for all."""
    options = {"beam_size": arguments.beam, "min_length": TARGET - 1, "max_length": TARGET}
    options |= {"early_stopping": "beam", "precision": arguments.precision}
    return options | ({"most_loss": 100} if arguments.precision == "int8" else {})  # of random weights no quality


def predict(
    model: Path, source: Path, out: Path, options: dict[str, Any], *more: str, memory: bool = False
) -> Measured:
    """Run the command over files, as a user does."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", str(model), "--input", str(source)]
    flags = [f"--generation.{name}={value}" for name, value in options.items()]
    if options["precision"] == "int8":
        pairs = out.with_name("pairs.parquet")
        pq.write_table(pa.table({"source": ["One row."], "target": ["Eine Zeile."]}), pairs)
        flags.append(f"--inference.quality_data={pairs}")
    result = measure([*command, "--out", str(out), *flags, *more], out.with_suffix(".log"), memory=memory)
    assert result.returncode == 0, result.output
    return result


def records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (out / "_units").iterdir()]


def steady_seconds(out: Path) -> float:
    """Return the seconds between the start of the first unit and the end of the last: without Ray's start."""
    found = records(out)
    return max(unit["began"] + unit["seconds"] for unit in found) - min(unit["began"] for unit in found)


def waiting_share(out: Path) -> float:
    """Return the share of the time, between its first unit and its last, in which a model had nothing to do."""
    waits, spans = 0.0, 0.0
    for _, units in itertools.groupby(sorted(records(out), key=lambda unit: unit["worker"]), lambda u: u["worker"]):
        own = list(units)
        span = max(u["began"] + u["seconds"] for u in own) - min(u["began"] for u in own)
        spans, waits = spans + span, waits + span - sum(u["seconds"] for u in own)
    return waits / max(spans, 1e-9)
