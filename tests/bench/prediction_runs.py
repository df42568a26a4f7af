"""Runs of the predict job that `prediction.py` times: memory, resume, cost, the time left, a long walk."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.predictions import (
    predict,
    records,
    search,
    steady_seconds,
    texts,
    waiting_share,
    write_model,
    write_rows,
)
from tests.bench.processes import Measured, draw_memory, measure, simulated_nodes
from tfray.report.tables import format_table

FILE_ROWS = 50_000
LEFT = re.compile(r"\((\d+)%\), .*?([\d:]+) elapsed, ([\d:]+) left")


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


def left(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the time left as the job's log says it, beside the time that it took from then on."""
    lines = texts(arguments, arguments.rows or 60_000)
    random.Random(1).shuffle(lines)  # the packages' lines get longer and shorter; no job can know that
    model, source = write_model(folder, arguments.size, lines), write_rows(folder / "input/rows.parquet", lines)
    result = predict(model, source, folder / "out", search(arguments), *arguments.options)
    said = [tuple(map(seconds_of, found)) for found in LEFT.findall(result.output)]
    end = said[-1][1]
    rows: list[list[object]] = [
        [
            f"{share} %",
            f"{elapsed} s",
            f"{predicted} s",
            f"{end - elapsed} s",
            f"{predicted / (end - elapsed) - 1:+.0%}",
        ]
        for share, elapsed, predicted in said
        if share < 100 and elapsed < end
    ]
    print(format_table(["done", "elapsed", "said to be left", "left", "off by"], rows))
    print("a line every 10 seconds; the issue asks for 15 % from 10 % on")


def seconds_of(text: str) -> int:
    """Return seconds of 1:02:03, or a whole number as it is."""
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def walk(arguments: argparse.Namespace, folder: Path) -> None:
    """Print what a long job takes from its dry run to its summary: times, rates, memory, sizes."""
    count = arguments.rows or 1_000_000
    lines = texts(arguments, count)
    model = Path(arguments.model) if arguments.model else write_model(folder, arguments.size, lines)
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        write_rows(folder / f"input/{number:04d}.parquet", lines[start : start + FILE_ROWS])
    del lines
    options = search(arguments) if not arguments.model else {"beam_size": arguments.beam}
    out, flags = folder / "out", [f"--generation.{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", str(model), "--input",
               str(folder / "input"), "--out", str(out), *flags, *arguments.options]  # fmt: skip
    dry = measure([*command, "--dry-run"], folder / "dry.log", memory=False)
    assert dry.returncode == 0, dry.output
    print(f"dry run, {dry.seconds:.1f} s:\n{dry.output}")
    run = measure(command, folder / "log", lambda: (out / "_units").is_dir() and any((out / "_units").iterdir()))
    assert run.returncode == 0, run.output
    again = measure(command, folder / "again.log", memory=False)
    assert again.returncode == 0, again.output
    steady, size = steady_seconds(out), sum(path.stat().st_size for path in out.glob("part-*"))
    rows: list[list[object]] = [
        ["rows", f"{sum(record['rows'] for record in records(out)):,}"],
        ["units", f"{len(records(out)):,}"],
        ["seconds to the first unit's end", f"{run.first or 0:.1f}"],
        ["seconds from the first unit's begin to the last one's end", f"{steady:.1f}"],
        ["seconds in all", f"{run.seconds:.1f}"],
        ["rows/s, first unit to last", f"{count / steady:.1f}"],
        ["share of the time in which a model waits", f"{waiting_share(out):.2%}"],
        ["peak memory of all processes, MB", f"{run.peak:,.0f}"],
        ["output, MB", f"{size / 1e6:,.1f}"],
        ["seconds to find it finished", f"{again.seconds:.1f}"],
    ]
    print(format_table(["", ""], rows))
    print(run.output[run.output.rindex("predictions:") :])
    draw_memory({1: run}, Path(arguments.plot), "tfray predict")
