"""Workers of a command that was killed do not meddle with the command that has taken over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.cluster import Nodes
from tests.training.runs import Run
from tests.training.token_folders import make_token_folder
from tfray import storage
from tfray.units.lock import LOCK, Lock

pytestmark = pytest.mark.ray


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and one more node."""
    nodes = Nodes(2)
    yield nodes
    nodes.stop()


@pytest.mark.timeout(400)
def test_workers_end_at_their_next_word_or_checkpoint_once_the_place_is_anothers(nodes: Nodes, tmp_path: Path) -> None:
    make_token_folder(tmp_path / "tokens")
    run = Run(tmp_path / "tokens", tmp_path / "run", nodes.address)
    run.start("1", pause=0.3)
    run.wait_for(2)
    other = Lock(str(run.out))
    heir = asdict(replace(other.me(), beat=time.time()))
    deadline = time.monotonic() + 60
    while run.process.poll() is None and time.monotonic() < deadline:  # a beat may fall between, and win
        storage.publish_bytes(str(run.out / LOCK), json.dumps(heir).encode())
        time.sleep(0.1)
    assert run.process.wait(60) == 2, run.log.read_text()
    assert f"is worked on by process {os.getpid()}" in run.log.read_text()
    assert json.loads((run.out / LOCK).read_text())["token"] == other.token, "another's lock is left"
    assert not (run.out / "_SUCCESS").exists()
