"""Prediction end to end: speed beside the engine alone and beside Hugging Face on Ray Data; memory, resume, cost.

    pip install -e '.[bench]'
    python tests/bench/prediction.py speed               # ratios to the engine alone, and to transformers
    python tests/bench/prediction.py memory --plot m.png # peak memory at 1x, 4x and 16x
    python tests/bench/prediction.py resume              # seconds to the last of 10,001 units
    python tests/bench/prediction.py cost                # by rows; on 1, 2 and 4 simulated nodes

The text is the prose in installed Python packages; --data takes Parquet files with the column source in its
place. Weights are random and the same everywhere; targets have a fixed length, so that all do the same work.
"""

from __future__ import annotations

import argparse
import itertools
import json
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

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.processes import Measured, draw_memory, measure, simulated_nodes
from tests.bench.text import prose_lines
from tfray.report.tables import format_table

TARGET = 24  # tokens of every target
VOCAB = 8000
LONGEST_TEXT = 200  # characters


def main() -> None:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "resume", "cost"])
    parser.add_argument("--data", nargs="*", help="Parquet files with the column source")
    parser.add_argument("--rows", type=int, help="rows; default: 16,000 for speed, 4,000 for memory and cost")
    parser.add_argument("--peer_rows", type=int, default=1000, help="rows for transformers, which is slower")
    parser.add_argument("--size", default="small", help="preset of the model in speed")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plot", default="predict-memory.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfray-bench-") as folder:
        ways = {"speed": speed, "memory": memory, "resume": resume, "cost": cost}
        ways[arguments.what](arguments, Path(folder))


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
    return options | {"early_stopping": "beam", "precision": arguments.precision}


def predict(
    model: Path, source: Path, out: Path, options: dict[str, Any], *more: str, memory: bool = False
) -> Measured:
    """Run the command over files, as a user does."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", str(model), "--input", str(source)]
    flags = [f"--generation.{name}={value}" for name, value in options.items()]
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


# ---------------------------------------------------------------------------------------------- speed


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


# ---------------------------------------------------------------------------------------------- memory


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Print and draw the memory of the whole process tree at 1x, 4x and 16x the input."""
    lines = texts(arguments, arguments.rows or 4000)
    model = write_model(folder, "tiny", lines)
    runs: dict[int, Measured] = {}
    for times in (1, 4, 16):
        for copy in range(times):
            write_rows(folder / f"x{times}/{copy:02d}.parquet", lines)
        options = ("--inference.unit_rows", "1000")
        arguments.beam = 1
        runs[times] = predict(
            model, folder / f"x{times}", folder / f"out{times}", search(arguments), *options, memory=True
        )
        print(f"  {times}x: peak {runs[times].peak:,.0f} MB, {runs[times].seconds:.1f} s", flush=True)
    peaks = [run.peak for run in runs.values()]
    rows: list[list[object]] = [
        [f"{times}x", f"{times * len(lines):,}", f"{run.seconds:.1f}", f"{run.peak:,.0f}"]
        for times, run in runs.items()
    ]
    print(format_table(["input", "rows", "seconds", "peak MB"], rows))
    print(f"largest peak over smallest: {max(peaks) / min(peaks):.3f}")
    draw_memory(runs, Path(arguments.plot), "tfray predict")


# ---------------------------------------------------------------------------------------------- resume


def resume(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the seconds from the start of a job with 10,000 finished units to its work on the last one."""
    from tfray.units.stored import read_plan

    lines = texts(arguments, 10_001)
    model = write_model(folder, "tiny", lines)
    for number in range(101):
        write_rows(folder / f"input/{number:03d}.parquet", lines[number * 100 : (number + 1) * 100])
    out, command = folder / "out", ("--inference.unit_rows", "1", "--inference.fail_fast", "false")
    arguments.beam = 1
    process = subprocess.Popen(
        [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", str(model), "--input", str(folder / "input"),
         "--out", str(out), *command, *(f"--generation.{name}={value}" for name, value in search(arguments).items())],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not any((out / "_units").glob("*.json")) if (out / "_units").exists() else True:
        time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(5)  # until Ray's processes have noticed
    first = next((out / "_units").glob("*.json"))
    units = read_plan(str(out), next(out.glob("_plan-*")).name)[0]
    for unit in units[:-1]:
        if not (record := out / "_units" / f"{unit.stem}.json").exists():
            record.write_text(first.read_text())
            os.link(out / f"{first.stem}.parquet", out / unit.output_name)
    (out / "_units" / f"{units[-1].stem}.json").unlink(missing_ok=True)
    began = time.time()
    flags = [f"--generation.{name}={value}" for name, value in search(arguments).items()]
    result = measure(
        [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", str(model), "--input",
         str(folder / "input"), "--out", str(out), *command, *flags], folder / "log", memory=False,
    )  # fmt: skip
    assert result.returncode == 0, result.output
    last = json.loads((out / "_units" / f"{units[-1].stem}.json").read_text())
    print(f"{len(units):,} units, {len(units) - 1:,} done before: work on the last one began after "
          f"{last['began'] - began:.1f} s; the job took {result.seconds:.1f} s")  # fmt: skip


# ---------------------------------------------------------------------------------------------- cost


def cost(arguments: argparse.Namespace, folder: Path) -> None:
    """Print seconds by rows, and the overhead of a unit on 1, 2 and 4 simulated nodes."""
    lines = texts(arguments, arguments.rows or 4000)
    model = write_model(folder, "tiny", lines)
    arguments.beam = 1
    rows: list[list[object]] = []
    for times in (1, 2, 4):
        source = write_rows(folder / f"x{times}/rows.parquet", lines * times)
        rows.append(cost_row(f"{times}x, this machine", model, source, folder, arguments))
    for nodes in (1, 2, 4):
        with simulated_nodes(nodes) as address:
            rows.append(
                cost_row(f"4x, {nodes} node(s) of 1 core", model, source, folder, arguments, "--address", address)
            )
    print(format_table(["", "rows", "seconds", "steady seconds", "steady s/1000 rows", "units", "overhead ms a unit"],
                       rows))  # fmt: skip
    print(f"(all nodes are on one machine with {os.cpu_count()} cores)")


def cost_row(name: str, model: Path, source: Path, folder: Path, arguments: argparse.Namespace, *more: str) -> list:
    """Return what one run took; overhead: time of the models in which they had no unit, by units."""
    result = predict(model, source, folder / "cost", search(arguments), "--inference.unit_rows", "250", *more)
    found, steady = records(folder / "cost"), steady_seconds(folder / "cost")
    count = sum(unit["rows"] for unit in found)
    models = len({unit["worker"] for unit in found})
    overhead = (steady * models - sum(unit["seconds"] for unit in found)) / len(found)
    return [name, f"{count:,}", f"{result.seconds:.1f}", f"{steady:.1f}", f"{steady / count * 1e3:.2f}", len(found),
            f"{overhead * 1e3:.0f}"]  # fmt: skip


if __name__ == "__main__":
    main()
