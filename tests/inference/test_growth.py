"""The job grows with its cluster: from `actors` to `max_actors`, when there is room."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import Nodes
from tests.inference.conftest import WORDS, make_model
from tests.inference.test_kills import start

pytestmark = pytest.mark.ray


def records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (out / "_units").glob("*.json")]


def at_once(units: list[dict]) -> int:
    """Return the most models that were at work at a time."""
    return max(
        len({other["worker"] for other in units if other["began"] <= unit["began"] < other["began"] + other["seconds"]})
        for unit in units
    )


def wait_for(happened: Callable[[], bool], seconds: float, log: Path) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.timeout(500)
def test_models_are_added_when_a_node_joins(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", max_length=64, width=256)
    chance = random.Random(3)
    texts = [" ".join(chance.choices(WORDS.split(), k=chance.randrange(5, 12))) for _ in range(60_000)]
    pq.write_table(pa.table({"source": texts}), tmp_path / "a.parquet", row_group_size=200)
    out, log = tmp_path / "out", tmp_path / "log"
    nodes = Nodes(1)
    process = start(
        model, str(tmp_path / "a.parquet"), str(out), log, nodes.address,
        "--inference.unit_rows", "200", "--inference.actors", "1", "--inference.max_actors", "2",
    )  # fmt: skip
    try:
        wait_for(lambda: (out / "_units").exists() and len(records(out)) >= 3, 90, log)
        assert at_once(records(out)) == 1
        nodes.tell("add")
        wait_for(lambda: at_once(records(out)) == 2, 200, log)
        assert process.poll() is None, "it grew while it ran"
    finally:
        process.kill()
        process.wait()
        nodes.stop()
