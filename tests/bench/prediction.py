"""Prediction end to end: speed beside the engine alone and beside Hugging Face on Ray Data; memory, resume, cost.

    pip install -e '.[bench]'
    python tests/bench/prediction.py speed               # ratios to the engine alone, and to transformers
    python tests/bench/prediction.py memory --plot m.png # peak memory at 1x, 4x and 16x
    python tests/bench/prediction.py resume              # seconds to the last of 10,001 units
    python tests/bench/prediction.py cost                # by rows; on 1, 2 and 4 simulated nodes
    python tests/bench/prediction.py left                # the time left that is shown, and what it was
    python tests/bench/prediction.py walk --beam 1 --size tiny --data FILES   # a million rows, from dry run to end

The text is the prose in installed Python packages; --data takes Parquet files with the column source in its
place. Weights are random and the same everywhere; targets have a fixed length, so that all do the same work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)


from tests.bench.prediction_runs import cost, left, memory, resume, walk
from tests.bench.predictions import (
    TARGET,
    predict,
    search,
    steady_seconds,
    texts,
    waiting_share,
    write_model,
    write_rows,
)
from tfray.report.tables import format_table


def main() -> None:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "resume", "cost", "left", "walk"])
    parser.add_argument("--data", nargs="*", help="Parquet files with the column source")
    parser.add_argument("--rows", type=int, help="default: 16,000; memory, cost: 4,000; left: 60,000; walk: 1,000,000")
    parser.add_argument("--peer_rows", type=int, default=1000, help="rows for transformers, which is slower")
    parser.add_argument("--size", default="small", help="preset of the model in speed, left and walk")
    parser.add_argument("--model", help="a trained model folder for walk, in place of random weights")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of tfray predict; for left and walk")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plot", default="predict-memory.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfray-bench-") as folder:
        ways = {"speed": speed, "memory": memory, "resume": resume, "cost": cost, "left": left, "walk": walk}
        ways[arguments.what](arguments, Path(folder))


def speed(arguments: argparse.Namespace, folder: Path) -> None:
    """Print rows/s of the engine alone, of the whole job, and of transformers on Ray Data."""
    lines = texts(arguments, arguments.rows or 16_000)
    model, source = write_model(folder, arguments.size, lines), write_rows(folder / "input/rows.parquet", lines)
    peers = write_rows(folder / "peer/rows.parquet", lines[: arguments.peer_rows])
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        engine = len(lines) / engine_seconds(model, lines, search(arguments))
        note(rates, f"the engine alone, rows tokenized in memory, {os.cpu_count()} processes", engine)
        result = predict(model, source, folder / "out", search(arguments))
        steady = len(lines) / steady_seconds(folder / "out")
        note(rates, "tfray predict, first unit to last", steady)
        note(rates, "tfray predict, the whole command", len(lines) / result.seconds)
        whole, working = transformers_seconds(model, peers, folder, arguments)
        note(rates, "transformers on Ray Data, first batch to last", arguments.peer_rows / working)
        note(rates, "transformers on Ray Data, the whole job", arguments.peer_rows / whole)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    base = next(iter(middle.values()))
    print(f"{len(lines):,} rows ({arguments.peer_rows:,} for transformers), {arguments.size}, beam {arguments.beam}, "
          f"{arguments.precision}, targets of {TARGET} tokens, {os.cpu_count()} cores")  # fmt: skip
    rows: list[list[object]] = [[name, f"{rate:.1f}", f"{rate / base:.3f}"] for name, rate in middle.items()]
    print(format_table(["", "rows/s", "x engine"], rows))
    steady, peer = middle["tfray predict, first unit to last"], middle["transformers on Ray Data, first batch to last"]
    print(f"predict over transformers on Ray Data: {steady / peer:.2f}")
    print(f"share of the time in which a model waits: {waiting_share(folder / 'out'):.2%}")


def note(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates.setdefault(name, []).append(rate)
    print(f"  {name}: {rate:.1f} rows/s", flush=True)


def engine_seconds(model: Path, lines: list[str], options: dict[str, Any]) -> float:
    """Return the seconds in which one process a core generates for rows that it has in memory."""
    processes = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=generate_share, args=(model, lines[core::processes], options, barrier, results))
        for core in range(processes)
    ]
    for worker in workers:
        worker.start()
    spans = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(stop for _, stop in spans) - min(start for start, _ in spans)


def generate_share(model: Path, lines: list[str], options: dict[str, Any], barrier: Any, results: Any) -> None:
    """Generate for some rows; report when it began and ended."""
    from tfray.checkpoint.folder import open_model_folder
    from tfray.config import GenerationConfig
    from tfray.generation.generate import generate, prepare
    from tfray.model.precision import prepare_cpu
    from tfray.tokens.special import EOS_ID

    prepare_cpu(threads=1)
    folder, config = open_model_folder(str(model)), GenerationConfig(**options)
    network = prepare(folder.load_model(), config)
    sources = [[*ids, EOS_ID] for ids in folder.tokenizer.encode_batch(lines)]
    generate(network, sources[:128], config)
    barrier.wait()
    began = time.time()
    generate(network, sources, config)
    results.put((began, time.time()))


def transformers_seconds(model: Path, source: Path, folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of a plain Ray Data job that maps `generate`, whole and from first batch to last."""
    out = folder / "transformers"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(ROOT / "tests/bench/peer_generate.py"), str(model), str(source), str(out)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, arguments.size, str(arguments.beam), str(TARGET)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = time.monotonic() - began
    return whole, float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
