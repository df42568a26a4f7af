"""Tokenization: speed beside the peers, memory and cost by size of the corpus.

    pip install -e '.[bench]'
    python tests/bench/tokenization.py speed               # ratios to tokenizers, datasets and datatrove
    python tests/bench/tokenization.py memory --plot m.png # peak memory at 1x, 4x and 16x
    python tests/bench/tokenization.py cost                # seconds per million rows: three sizes; 1, 2 and 4 nodes

The text is the prose in installed Python packages, each line once; --data takes Parquet files with the
columns source and target in its place. Everything compared is run in turn, several times, in one run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers

from tests.bench.processes import Measured, draw_memory, measure, simulated_nodes
from tests.bench.text import write_pairs
from tfray.config import TextConfig
from tfray.corpus.normalize import normalize
from tfray.report.tables import format_table

SAMPLE_ROWS = 20_000
CLEANING = ["--corpus.clean.drop_equal", "true", "--corpus.clean.max_length_ratio", "9"]


def main() -> None:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "cost"])
    parser.add_argument("--data", nargs="*", help="Parquet files with the columns source and target")
    parser.add_argument("--megabytes", type=float, default=60, help="size of the text where no data are given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--plot", default="tokenize-memory.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfray-bench-") as folder:
        {"speed": speed, "memory": memory, "cost": cost}[arguments.what](arguments, Path(folder))


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[list[Path], Path, float]:
    """Return the corpus' files, a tokenizer trained on a part of them, and the MB of UTF-8 in them."""
    files = [Path(path) for path in arguments.data or []]
    if not files:
        write_pairs(folder / "text", arguments.megabytes)
        files = sorted((folder / "text").iterdir())
    sizes = [table_bytes(pq.read_table(path, columns=["source", "target"])) for path in files]
    first = tfray_tokenize(files[:1], folder / "first", "--tokens.vocab_size", str(arguments.vocab))
    assert first.returncode == 0, first.output
    return files, folder / "first" / "tokenizer.json", sum(sizes) / 1e6


def table_bytes(table: pa.Table) -> int:
    """Return the bytes of UTF-8 in a table of text."""
    return sum(len(text.encode()) for column in table.columns for text in column.to_pylist() if text)


def tfray_tokenize(files: list[Path], out: Path, *options: str, memory: bool = False) -> Measured:
    """Run the command over files, as a user does."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tfray.cli", "tokenize", "--corpus.train", json.dumps(list(map(str, files)))]
    shards = out / "train"
    return measure(
        [*command, "--out", str(out), *options],
        out.with_suffix(".log"),
        happened=lambda: shards.exists() and any(path.name.startswith("part-") for path in shards.iterdir()),
        memory=memory,
    )


# ---------------------------------------------------------------------------------------------- speed


def speed(arguments: argparse.Namespace, folder: Path) -> None:
    """Print MB/s of every way from the same text to ids, and whether the ids are the same."""
    files, tokenizer, megabytes = prepare(arguments, folder)
    print(f"{megabytes:.1f} MB of text in {len(files)} files, vocabulary {arguments.vocab:,}, {os.cpu_count()} cores")
    ways: dict[str, Callable[[], float]] = {
        "tokenizers encode_batch, all cores, text in memory": lambda: raw_library(files, tokenizer),
        "tfray tokenize, the whole command": lambda: tfray_whole(files, tokenizer, folder),
        "tfray tokenize, first unit to last, Parquet to Parquet": lambda: first_to_last(folder / "tfray"),
        "datasets.map(num_proc=2), Parquet to Parquet": lambda: hugging_face(files, tokenizer, folder),
        "datatrove, 2 tasks, Parquet to ids on disk": lambda: datatrove(files, tokenizer, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(arguments.rounds), ways.items()):
        seconds[name].append(way())
        print(f"  {name}: {megabytes / seconds[name][-1]:.2f} MB/s", flush=True)
    base = statistics.median(next(iter(seconds.values())))
    rows: list[list[object]] = [
        [
            name,
            f"{megabytes / statistics.median(times):.2f}",
            f"{megabytes / max(times):.2f}-{megabytes / min(times):.2f}",
            f"{base / statistics.median(times):.2f}",
        ]
        for name, times in seconds.items()
    ]
    print(format_table(["", "MB/s", "spread", "x tokenizers"], rows))
    print(f"ids equal to the library's: {same_ids(files, tokenizer, folder / 'tfray')}")


def raw_library(files: list[Path], tokenizer: Path) -> float:
    """Return the seconds of the library's own batch encoding, in a process of its own with all its threads."""
    program = (
        "import sys, time, tokenizers, pyarrow.parquet as pq\n"
        "tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])\n"
        "tables = [pq.read_table(path, columns=['source', 'target']) for path in sys.argv[2:]]\n"
        "texts = [column.to_pylist() for table in tables for column in table.columns]\n"
        "batches = [text[i:i + 4096] for text in texts for i in range(0, len(text), 4096)]\n"
        "begun = time.perf_counter()\n"
        "for batch in batches: tokenizer.encode_batch(batch, add_special_tokens=False)\n"
        "print(time.perf_counter() - begun)\n"
    )
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-c", program, str(tokenizer), *map(str, files)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def tfray_whole(files: list[Path], tokenizer: Path, folder: Path) -> float:
    """Return the seconds of the whole command, from its start to its end."""
    result = tfray_tokenize(files, folder / "tfray", "--tokens.tokenizer", str(tokenizer), *CLEANING)
    assert result.returncode == 0, result.output
    return result.seconds


def first_to_last(tokens: Path) -> float:
    """Return the seconds between the start of a run's first unit and the end of its last.

    Ray and the actors are up by then: what a corpus of any size is done at.
    """
    records = [json.loads(path.read_text()) for path in (tokens / "_units").iterdir()]
    return max(record["began"] + record["seconds"] for record in records) - min(record["began"] for record in records)


def hugging_face(files: list[Path], tokenizer: Path, folder: Path) -> float:
    """Return the seconds of datasets.map with two processes over the same files, to Parquet."""
    program = (
        "import sys, time\n"
        "import datasets, tokenizers\n"
        "datasets.disable_progress_bars()\n"
        "begun = time.perf_counter()\n"
        "tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])\n"
        "def encode(rows):\n"
        "    return {side: [e.ids for e in tokenizer.encode_batch(rows[side], add_special_tokens=False)]\n"
        "            for side in ('source', 'target')}\n"
        "data = datasets.load_dataset('parquet', data_files=sys.argv[3:], split='train', cache_dir=sys.argv[2])\n"
        "data.map(encode, batched=True, num_proc=2).to_parquet(sys.argv[2] + '/ids.parquet')\n"
        "print(time.perf_counter() - begun)\n"
    )
    return run_peer(program, tokenizer, folder / "datasets", files)


def datatrove(files: list[Path], tokenizer: Path, folder: Path) -> float:
    """Return the seconds of datatrove's document tokenizer with two tasks, source and target as documents."""
    program = (
        "import sys, time\n"
        "from datatrove.executor import LocalPipelineExecutor\n"
        "from datatrove.pipeline.readers import ParquetReader\n"
        "from datatrove.pipeline.tokens import DocumentTokenizer\n"
        "if __name__ == '__main__':\n"
        "    begun = time.perf_counter()\n"
        "    for side in ('source', 'target'):\n"
        "        LocalPipelineExecutor([\n"
        "            ParquetReader(sys.argv[3], text_key=side, glob_pattern='*.parquet'),\n"
        "            DocumentTokenizer(sys.argv[2] + '/' + side, tokenizer_name_or_path=sys.argv[1], eos_token=None,\n"
        "                              shuffle_documents=False, save_filename=side),\n"
        "        ], tasks=2, workers=2, logging_dir=sys.argv[2] + '/log' + side).run()\n"
        "    print(time.perf_counter() - begun)\n"
    )
    return run_peer(program, tokenizer, folder / "datatrove", [files[0].parent])


def run_peer(program: str, tokenizer: Path, out: Path, files: list[Path]) -> float:
    """Return the seconds that a peer's program prints last."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    script = out.with_name(f"run_{out.name}.py")  # not the name of a library
    script.write_text(program)
    command = [sys.executable, str(script), str(tokenizer), str(out), *map(str, files)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def same_ids(files: list[Path], tokenizer: Path, tokens: Path) -> bool:
    """Say whether the shards hold exactly the library's ids of the (normalized) rows that they name."""
    library = tokenizers.Tokenizer.from_file(str(tokenizer))
    library.encode_special_tokens = True
    shards = pq.read_table(tokens / "train", columns=["source_ids", "target_ids", "file", "row"])
    for path in files:
        of_file = shards.filter(pc.equal(shards["file"].cast(pa.string()), str(path.absolute())))
        texts = pq.read_table(path, columns=["source", "target"]).take(of_file["row"])
        for side, tail in (("source", 1), ("target", 0)):
            clean = normalize(texts[side].combine_chunks(), TextConfig()).to_pylist()
            wanted = [e.ids for e in library.encode_batch_fast(clean, add_special_tokens=False)]
            found = [ids[: len(ids) - tail] for ids in of_file[f"{side}_ids"].to_pylist()]
            if wanted != found:
                return False
    return len(shards) > 0


# ---------------------------------------------------------------------------------------------- memory


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Print and draw the memory of the whole process tree at 1x, 4x and 16x the corpus."""
    files, _, megabytes = prepare(arguments, folder)
    runs: dict[int, Measured] = {}
    for times in (1, 4, 16):
        copies = multiply(files, times, folder / f"x{times}")
        # The survey and the training of a tokenizer are in it; its sample has the same size for all.
        options = ("--tokens.sample_rows", str(SAMPLE_ROWS), "--tokens.shard_tokens", "400000")
        runs[times] = tfray_tokenize(copies, folder / f"out{times}", *options, memory=True)
        assert runs[times].returncode == 0, runs[times].output
        shutil.rmtree(folder / f"x{times}")
    peaks = [run.peak for run in runs.values()]
    rows: list[list[object]] = [
        [f"{times}x", f"{times * megabytes:,.0f}", f"{run.seconds:.1f}", f"{run.peak:,.0f}", f"{run.first or 0:.1f}"]
        for times, run in runs.items()
    ]
    print(format_table(["corpus", "MB of text", "seconds", "peak MB", "seconds to the first shard"], rows))
    print(f"largest peak over smallest: {max(peaks) / min(peaks):.3f}")
    draw_memory(runs, Path(arguments.plot), "tfray tokenize")


def multiply(files: list[Path], times: int, folder: Path) -> list[Path]:
    """Write a corpus several times as large: each copy pairs the first half of every line with another's second."""
    folder.mkdir()
    copies = []
    for copy, path in itertools.product(range(times), files):
        table = pq.read_table(path, columns=["source", "target"])
        columns = {side: pa.array(recombine(table[side].to_pylist(), copy)) for side in table.column_names}
        copies.append(folder / f"{copy:02d}-{path.name}")
        pq.write_table(pa.table(columns), copies[-1], row_group_size=20_000)
    return copies


def recombine(lines: list[str], shift: int) -> list[str]:
    """Return lines whose second half is that of a line some places further."""
    halves = [(line.split(" ")[: line.count(" ") // 2], line.split(" ")[line.count(" ") // 2 :]) for line in lines]
    return [" ".join(halves[i][0] + halves[(i + 7919 * shift) % len(halves)][1]) for i in range(len(halves))]


# ---------------------------------------------------------------------------------------------- cost


def cost(arguments: argparse.Namespace, folder: Path) -> None:
    """Print seconds per million rows at three sizes, and on 1, 2 and 4 simulated nodes."""
    files, tokenizer, _ = prepare(arguments, folder)
    options = ("--tokens.tokenizer", str(tokenizer))
    rows: list[list[object]] = []
    for times in (2, 4, 8):
        copies = multiply(files, times, folder / f"x{times}")
        rows.append(cost_row(f"{times}x, this machine", copies, folder, *options))
    for nodes in (1, 2, 4):
        with simulated_nodes(nodes) as address:
            rows.append(cost_row(f"8x, {nodes} node(s) of 1 core", copies, folder, *options, "--address", address))
    print(format_table(["", "million rows", "seconds", "seconds per million rows", "first unit to last"], rows))
    print(f"(all nodes are on one machine with {os.cpu_count()} cores)")


def cost_row(name: str, files: list[Path], folder: Path, *options: str) -> list[object]:
    """Return what one run took."""
    count = sum(pq.read_metadata(path).num_rows for path in files) / 1e6
    result = tfray_tokenize(files, folder / "cost", *options)
    assert result.returncode == 0, result.output
    working = first_to_last(folder / "cost")
    return [name, f"{count:.2f}", f"{result.seconds:.1f}", f"{result.seconds / count:.1f}", f"{working / count:.1f}"]


if __name__ == "__main__":
    main()
