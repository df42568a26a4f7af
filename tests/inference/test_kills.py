"""Killed anywhere and started again: every row is there once, with the values of an undisturbed run."""

from __future__ import annotations

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
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from tests.cluster import ENVIRONMENT, Nodes
from tests.conftest import S3
from tests.inference.conftest import WORDS, make_model
from tfray import storage

pytestmark = pytest.mark.ray

KILLS = int(os.environ.get("TFRAY_KILLS", "10"))  # in all, over as many inputs as it takes
KILLS_ON_S3 = max(3, KILLS // 10)
FILES, ROWS, UNIT_ROWS = 8, 900, 75
OPTIONS = [
    *("--generation.beam_size", "2", "--inference.unit_rows", str(UNIT_ROWS)),
    *("--inference.provenance", "true"),
]


@pytest.fixture(scope="module")
def killed_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"), max_length=64)


def write_input(folder: Path, chance: random.Random, files: int = FILES) -> None:
    """Write files of random rows, good and bad, in several formats."""
    folder.mkdir()
    for number in range(files):
        texts = [" ".join(chance.choices(WORDS.split(), k=chance.randrange(1, 12))) for _ in range(ROWS)]
        for place in chance.sample(range(ROWS), 20):
            texts[place] = chance.choice(["", "ten " * 90, "One two. Three four. " * 9])
        if number % 4 == 3:
            lines = [json.dumps({"source": text, "id": row}) for row, text in enumerate(texts)]
            lines[5], lines[77] = "{cut", '{"id": 77}'
            (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        else:
            table = pa.table({"source": texts, "id": range(ROWS)})
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=chance.choice([100, 300, ROWS]))


def start(model: str, source: str, out: str, log: Path, address: str, *options: str) -> subprocess.Popen[bytes]:
    """Start the job as a user does."""
    command = [sys.executable, "-m", "tfray.cli", "predict", "--model_folder", model, "--input", source, "--out", out]
    with log.open("ab") as output:
        environment = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(
            [*command, "--address", address, *(options or OPTIONS)], stdout=output, stderr=output, env=environment
        )


class Chaos:
    """Runs a job to its end while parts of it are killed."""

    def __init__(self, nodes: Nodes, model: str, source: str, out: str, log: Path, chance: random.Random) -> None:
        self.nodes, self.log, self.chance = nodes, log, chance
        self.arguments = (model, source, out, log, nodes.address)
        self.source, self.out = source, out
        self.killed: Counter[str] = Counter()
        self.spoilt: dict[Path, bytes] = {}
        self.units = 0

    def run(self, most: int, spoil: bool = True) -> Counter[str]:
        """Return how often what was killed."""
        process = start(*self.arguments)
        deadline = time.monotonic() + 90 + 25 * most
        while process.poll() is None or process.returncode not in (0, 2, 3):
            assert time.monotonic() < deadline, self.log.read_text()
            if process.poll() is not None:  # Ray gave up: the same command goes on
                self.killed["restarts after Ray's own failure"] += 1
                process = start(*self.arguments)
            time.sleep(self.chance.uniform(0.2, 5.0))
            if self.killed.total() >= most or process.poll() is not None:
                continue
            kind = self.choose()
            workers = self.nodes.workers()
            finished = self.finished() if spoil else []
            if kind == "driver" and self.has_grown() and (finished or self.spoilt or not spoil):
                process.kill()
                process.wait()
                for path in finished:
                    self.spoil(path)
                process = start(*self.arguments)
            elif kind == "node" and workers:
                self.nodes.tell("lose")
                self.nodes.tell("add")
            elif kind == "worker" and workers:
                self.chance.choice(workers).send_signal(signal.SIGKILL)
            else:
                continue
            self.killed[kind] += 1
        assert process.returncode == 0, self.log.read_text()
        return self.killed

    def choose(self) -> str:
        """Return what is killed next: each kind once, and from then on what chance says."""
        once = next((kind for kind in ("node", "worker", "driver") if not self.killed[kind]), None)
        return once or self.chance.choices(["worker", "node", "driver"], [8, 1, 4])[0]

    def done(self) -> int:
        """Return how many units have their record."""
        return len(storage.list_files(storage.join(self.out, "_units")))

    def has_grown(self) -> bool:
        """Say whether units were finished since the driver was killed last: a start takes longer than a unit."""
        count = self.done()
        grown, self.units = count > self.units + 3, count if count > self.units + 3 else self.units
        return grown

    def finished(self) -> list[Path]:
        """Return the input files whose units are all done, but for spoilt ones."""
        plan = next(Path(self.out).glob("_plan-*.parquet"), None)
        if plan is None:
            return []
        done = {path.stem for path in Path(self.out, "_units").glob("*.json")}
        from tfray.units.stored import read_plan

        units = read_plan(self.out, plan.name)[0]
        open_files = {unit.path for unit in units if unit.stem not in done}
        inputs = sorted(Path(self.source).iterdir())
        return [path for path in inputs if str(path) not in open_files and path not in self.spoilt]

    def spoil(self, path: Path) -> None:
        """Overwrite an input file, unseen by its size and time: whoever opens it will fail."""
        times, content = path.stat(), path.read_bytes()
        self.spoilt[path] = content
        path.write_bytes(b"\xff" * len(content))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def tables(out: str) -> dict[str, pa.Table]:
    """Return every file of an output, by its name."""
    found = {}
    for path in storage.list_files(out):
        name = path.partition("?")[0].rpartition("/")[2]
        if name.startswith("part-"):
            with storage.open_input(path) as file:
                found[name] = pq.read_table(file)
    return found


def places(parts: dict[str, pa.Table]) -> Counter[tuple[str, int]]:
    """Return how often each (file, row) stands in an output."""
    return Counter(
        (Path(file).name.partition("?")[0], row)
        for table in parts.values()
        for file, row in zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True)
    )


def without_file(table: pa.Table) -> pa.Table:
    return table.drop_columns(["file"])


@pytest.mark.timeout(max(1500, 60 * KILLS))
def test_every_row_is_there_once_with_its_value_and_finished_files_stay_closed(
    nodes: Nodes, killed_model: str, tmp_path: Path
) -> None:
    killed: Counter[str] = Counter()
    chance, spoilt = random.Random(KILLS), 0
    wanted = {(f"{n}.{'jsonl' if n % 4 == 3 else 'parquet'}", row) for n in range(FILES) for row in range(ROWS)}
    # A fast machine may be done before everything was killed: go on until it was.
    while killed.total() < KILLS or not (killed["worker"] and killed["node"] and killed["driver"] and spoilt):
        folder = tmp_path / str(killed.total())
        folder.mkdir()
        write_input(folder / "input", chance)
        calm = start(killed_model, str(folder / "input"), str(folder / "calm"), folder / "log", nodes.address)
        assert calm.wait(200) == 0, (folder / "log").read_text()
        chaos = Chaos(nodes, killed_model, str(folder / "input"), str(folder / "killed"), folder / "killed.log", chance)
        killed += chaos.run(max(6, KILLS - killed.total()))
        spoilt += len(chaos.spoilt)
        expected, found = tables(str(folder / "calm")), tables(str(folder / "killed"))
        count = places(found)
        assert set(count.values()) == {1}, "no row is there twice"
        assert set(count) == wanted, "none is lost"
        assert found.keys() == expected.keys()
        for name, table in found.items():
            assert table.equals(expected[name]), f"{name} is not what an undisturbed run makes"
    print(f"killed: {dict(killed)}; input files made unreadable once they were done: {spoilt}")


def test_the_same_from_s3_to_s3(s3: S3, killed_model: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    write_input(tmp_path / "input", chance, files=FILES // 2)  # the server is slow
    source, outs = s3.place("data", "input"), [s3.place("data", name) for name in ("calm", "killed")]
    pyarrow.fs.copy_files(str(tmp_path / "input"), source)
    nodes = Nodes(3)  # has the credentials in its environment
    try:
        calm = start(killed_model, source, outs[0], tmp_path / "log", nodes.address)
        assert calm.wait(250) == 0, (tmp_path / "log").read_text()
        chaos = Chaos(nodes, killed_model, source, outs[1], tmp_path / "killed.log", chance)
        print(f"killed: {dict(chaos.run(KILLS_ON_S3, spoil=False))}")
        expected, found = tables(outs[0]), tables(outs[1])
    finally:
        nodes.stop()
    count = places(found)
    assert set(count.values()) == {1} and len(count) == FILES // 2 * ROWS
    assert {name: without_file(table) for name, table in found.items()} == {
        name: without_file(table) for name, table in expected.items()
    }
