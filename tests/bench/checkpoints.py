"""How long training stands still for checkpoints, and how long they take to write, verify and load.

python tests/bench/checkpoints.py [--size base] [--saves 5] [--every_seconds 60] [--out FOLDER]

The state is that of a preset with a vocabulary of 32,000 and a moving average. Between saves the machine multiplies
matrices, as training would, for as long as a save is written, so that both are seen at once.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from tfray.checkpoint.checkpoints import Checkpoints, read_weights
from tfray.checkpoint.state import Progress, complete_checkpoints, newest_progress
from tfray.config import ModelConfig
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer


def state_of(size: str) -> dict[str, Tensor]:
    """Return weights, moments and average of a preset, all different."""
    torch.manual_seed(0)
    weights = Transformer(resolve(ModelConfig(preset=size), 32_000, 512)).state_dict()  # type: ignore[arg-type]
    kinds = ("weight", "exp_avg", "exp_avg_sq", "average")
    return {f"{kind}.{name}": tensor + number for number, kind in enumerate(kinds) for name, tensor in weights.items()}


def compute(seconds: float) -> float:
    """Multiply matrices for so long; return how many a second."""
    matrix, count, started = torch.randn(512, 512), 0, time.monotonic()
    while time.monotonic() - started < seconds:
        matrix = (matrix @ matrix).clamp(-1, 1)
        count += 1
    return count / (time.monotonic() - started)


def timed(name: str, total: int, function, *arguments) -> None:
    started = time.monotonic()
    function(*arguments)
    seconds = time.monotonic() - started
    print(f"{name:<34} {seconds:8.3f} s  {total / seconds / 1e9:6.2f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="base")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--every_seconds", type=float, default=60.0, help="time between checkpoints in training")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    out = arguments.out or tempfile.mkdtemp(prefix="tfray-checkpoints-")
    state = state_of(arguments.size)
    total = sum(tensor.nbytes for tensor in state.values())
    print(f"{arguments.size}: {len(state)} tensors, {total / 1e9:.2f} GB, {torch.get_num_threads()} thread(s), {out}")
    alone = compute(3.0)
    checkpoints = Checkpoints(out, keep=2)
    stood, written = [], []
    for step in range(1, arguments.saves + 1):
        before, started = checkpoints.waited_seconds, time.monotonic()
        checkpoints.save(Progress(step=step), state)
        stood.append(checkpoints.waited_seconds - before)
        assert checkpoints.writing is not None
        beside = []
        while not checkpoints.writing.done():
            beside.append(compute(0.1))
        written.append(time.monotonic() - started)
        print(
            f"save {step}: stood still {stood[-1]:.3f} s, published after {written[-1]:.2f} s; beside it "
            f"{sum(beside) / len(beside) / alone:.0%} of the products of an idle machine"
        )
        checkpoints.wait()
    again = stood[1:] or stood  # the first one asks for memory
    share = sum(again) / len(again) / arguments.every_seconds
    print(f"stood still: mean {sum(again) / len(again):.3f} s (first {stood[0]:.3f} s)", end=", ")
    print(f"{share:.2%} of the time with a checkpoint every {arguments.every_seconds:g} s")
    timed("newest_progress (verify all bytes)", total, newest_progress, out)
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    timed("load (verify, then into place)", total, Checkpoints(out, keep=2).load, live)
    assert all(torch.equal(live[name], tensor) for name, tensor in state.items())
    timed("read_weights (verify, average)", total, read_weights, complete_checkpoints(out)[-1])
    if not arguments.out:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
