"""Killed at any moment while saving: what is found afterwards is whole, and as new as what was published."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.checkpoint.ranks import CONTEXT
from tests.checkpoint.samples import assert_equal, folders, some_state, zeros
from tfray.checkpoint.checkpoints import Checkpoints
from tfray.checkpoint.state import Progress, newest_progress

KILLS = int(os.environ.get("TFRAY_KILLS", "30"))


def train(out: str, published) -> None:
    """Go on from the newest checkpoint and save a state a step until killed; send each step that is published."""
    checkpoints, state = Checkpoints(out, keep=1, keep_best=1), zeros(some_state(0))
    step = checkpoints.load(state).step
    if step:
        assert_equal(state, some_state(step))
    published.send(step)
    while True:
        step += 1
        checkpoints.save(Progress(step=step, updates=step), some_state(step), score=-step % 7)
        checkpoints.wait()
        published.send(step)


def test_a_kill_at_any_moment_leaves_the_newest_published_checkpoint_or_a_later_one(tmp_path: Path) -> None:
    chance, last, survived_leftovers = random.Random(5), 0, 0
    for _ in range(KILLS):
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=train, args=(str(tmp_path), there))
        process.start()
        there.close()
        assert here.recv() == last, "it goes on from what the one before left"
        told, seconds = last, 0.0
        for _ in range(chance.randrange(1, 4)):
            started = time.monotonic()
            told = here.recv()
            seconds = time.monotonic() - started
        time.sleep(chance.uniform(0, seconds))  # so that the kill falls anywhere in the next save
        assert process.pid and process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                told = here.recv()
        except EOFError:
            pass
        found = newest_progress(str(tmp_path))
        assert told <= found.step <= told + 1 and found.updates == found.step
        state = zeros(some_state(0))
        if found.step:
            assert Checkpoints(str(tmp_path), keep=1).load(state) == found
            assert_equal(state, some_state(found.step))
        last = found.step
        files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
        survived_leftovers += len(files) % 2 or any(path.name.startswith(".") for path in files)
    assert last >= KILLS, "checkpoints were written between the kills"
    assert survived_leftovers, "kills fell into the writing, too"
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(Progress(step=last + 1), some_state(1))
    checkpoints.wait()
    assert folders(tmp_path) == [f"step-{last + 1:08d}"]
