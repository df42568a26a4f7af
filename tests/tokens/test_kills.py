"""Killed anywhere and started again: every row is in exactly one place, and the shards are the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import ENVIRONMENT, Nodes

pytestmark = pytest.mark.ray

KILLS = int(os.environ.get("TFRAY_KILLS", "15"))  # in all, over as many corpora as it takes
ROWS = 24_000  # of each corpus
OPTIONS = [
    *("--tokens.vocab_size", "2000", "--tokens.sample_rows", "5000", "--tokens.shard_tokens", "20000"),
    *("--corpus.clean.duplicates", "either", "--corpus.valid_share", "0.05", "--corpus.test_share", "0.02"),
    *("--corpus.clean.max_error_rate", "1", "--corpus.clean.max_length_ratio", "4"),
]


def write_corpus(folder: Path, chance: random.Random) -> dict[str, int]:
    """Write a corpus of random rows, good and bad, in several formats; return the rows of each file."""
    folder.mkdir()
    words = ["".join(chance.choices("abcdefghijklmnopäöüß", k=chance.randrange(1, 9))) for _ in range(3000)]

    def text() -> str:
        return " ".join(chance.choices(words, k=chance.randrange(1, 25)))

    pairs = [(text(), text()) for _ in range(ROWS)]
    for _ in range(ROWS // 10):  # equal sides and pairs, near and far
        place, other = chance.randrange(ROWS), chance.randrange(ROWS)
        pairs[place] = chance.choice([pairs[other], (pairs[other][0], text()), (text(), pairs[other][1]), (" ", "x")])
    third = ROWS // 3
    columns = [list(side) for side in zip(*pairs[:third], strict=True)]
    table = pa.table({"source": columns[0], "target": columns[1]})
    pq.write_table(table, folder / "a.parquet", row_group_size=chance.choice([500, 3000, third]))
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs[third : 2 * third]]
    for place in chance.sample(range(third), 200):
        lines[place] = chance.choice(["{cut", "", '{"source": 7, "target": "x"}', '{"source": "alone"}'])
    (folder / "b.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rest = pairs[2 * third :]
    (folder / "c.tsv").write_text("source\ttarget\n" + "".join(f"{source}\t{target}\n" for source, target in rest))
    return {
        str(folder / name): count for name, count in (("a.parquet", third), ("b.jsonl", third), ("c.tsv", len(rest)))
    }


def start(corpus: Path, out: Path, address: str) -> subprocess.Popen[bytes]:
    """Start the job as a user does."""
    command = [sys.executable, "-m", "tfray.cli", "tokenize", "--corpus.train", str(corpus), "--out", str(out)]
    with out.with_suffix(".log").open("ab") as log:
        environment = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen([*command, "--address", address, *OPTIONS], stdout=log, stderr=log, env=environment)


def run_with_kills(nodes: Nodes, corpus: Path, out: Path, chance: random.Random, most: int) -> Counter[str]:
    """Run a job to its end while parts of it are killed; return how often what was killed."""
    killed: Counter[str] = Counter()
    process = start(corpus, out, nodes.address)
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()
        time.sleep(chance.uniform(0.2, 0.9))
        if killed.total() >= most or process.poll() is not None:
            continue
        once = next((kind for kind in ("worker", "node", "driver") if not killed[kind]), None)
        kind = once or chance.choices(["worker", "node", "driver"], [6, 1, 1])[0]
        workers = nodes.workers()
        if kind == "driver" and (out / "_manifest.json").exists():
            process.kill()
            process.wait()
            process = start(corpus, out, nodes.address)
        elif kind == "node" and workers:
            nodes.tell("lose")
            nodes.tell("add")
        elif kind == "worker" and workers:
            chance.choice(workers).send_signal(signal.SIGKILL)
        else:
            continue
        killed[kind] += 1
    assert process.returncode == 0, out.with_suffix(".log").read_text()
    return killed


def content(out: Path) -> dict[str, str]:
    """Return the hash of every file that a job leaves, apart from records, which hold times."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("train", "valid", "test", "rejected")
        for path in sorted((out / folder).iterdir())
    } | {"tokenizer.json": hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()}


def places(out: Path) -> Counter[tuple[str, int]]:
    """Return how often each (file, row) stands in a shard or among the rejected rows."""
    found: Counter[tuple[str, int]] = Counter()
    for folder in ("train", "valid", "test", "rejected"):
        table = pq.read_table(out / folder, columns=["file", "row"])
        found.update(zip(table["file"].cast(pa.string()).to_pylist(), table["row"].to_pylist(), strict=True))
    return found


@pytest.mark.timeout(1500)
def test_every_row_is_in_exactly_one_place_and_the_same_bytes_whatever_is_killed(nodes: Nodes, tmp_path: Path) -> None:
    killed: Counter[str] = Counter()
    chance = random.Random(KILLS)
    # A fast machine may be done before everything was killed: go on until it was.
    while killed.total() < KILLS or not (killed["worker"] and killed["node"] and killed["driver"]):
        folder = tmp_path / str(killed.total())
        folder.mkdir()
        rows = write_corpus(folder / "corpus", chance)
        calm = start(folder / "corpus", folder / "calm", nodes.address)
        assert calm.wait(200) == 0, (folder / "calm.log").read_text()
        killed += run_with_kills(nodes, folder / "corpus", folder / "killed", chance, max(6, KILLS - killed.total()))
        found = places(folder / "killed")
        assert set(found.values()) == {1}, "no row is in two places"
        assert set(found) == {(path, row) for path, count in rows.items() for row in range(count)}, "none is lost"
        assert content(folder / "killed") == content(folder / "calm"), "the same bytes as without a kill"
    print(f"killed: {dict(killed)}")
