"""Wishes from outside: the strongest counts, SIGTERM leaves time for a checkpoint, and a second one does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
import torch

from tfray.training import stop
from tfray.training.stop import EXIT_CODE, Agreement, Wish, Wishes


def test_the_strongest_wish_counts_and_only_a_wish_to_save_is_over_once_saved() -> None:
    wishes = Wishes()
    wishes.ask(Wish.SAVE)
    wishes.saved()
    assert wishes.strongest == Wish.NOTHING
    wishes.ask(Wish.END)
    wishes.ask(Wish.SAVE)
    wishes.saved()
    assert wishes.strongest == Wish.END


def test_a_worker_alone_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = Wishes()
    monkeypatch.setattr(stop, "WISHES", wishes)
    for wish in Wish:
        wishes.ask(wish)
        assert Agreement(torch.device("cpu")).result() == wish


def test_a_worker_alone_does_not_ask_its_gpu() -> None:
    assert Agreement(torch.device("meta")).result() == Wish.NOTHING  # from there nothing can be had


def test_whoever_has_training_end_waits_until_it_has() -> None:
    wishes = Wishes()
    wishes.begin()
    assert not wishes.end_and_wait(0.05)
    threading.Timer(0.1, wishes.end).start()
    assert wishes.end_and_wait(10)
    assert not wishes.is_training


PROGRAM = """
import signal, sys, time
from tfray.training.stop import WISHES, Wish
signal.signal(signal.SIGTERM, WISHES.on_sigterm)
if "training" in sys.argv:
    WISHES.begin()
print("ready", flush=True)
while WISHES.strongest == Wish.NOTHING:
    time.sleep(0.01)
print(WISHES.strongest.name, flush=True)
if "slow" in sys.argv:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "signals", "code", "said"),
    [
        (["training"], 1, 0, "MOVE\n"),
        (["training", "slow"], 2, EXIT_CODE, "MOVE\n"),
        ([], 1, EXIT_CODE, ""),
    ],
    ids=["once: there is time to save", "twice: at once", "nothing is trained: at once"],
)
def test_sigterm(how: list[str], signals: int, code: int, said: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    heard = ""
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        heard += process.stdout.readline() if len(heard) < len(said) else ""
    assert process.wait(30) == code
    assert heard == said
