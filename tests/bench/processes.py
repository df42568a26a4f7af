"""Memory of a whole process tree while a command runs; a cluster of several nodes on one machine."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

EVERY_SECONDS = 0.25


@dataclass
class Measured:
    """One run of a command."""

    seconds: float = 0.0
    returncode: int = 0
    output: str = ""
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, and MB of the whole process tree (proportional set size: shared pages, the
    object store among them, count once)."""
    first: float | None = None
    """Seconds until `happened` held for the first time."""

    @property
    def peak(self) -> float:
        return max((megabytes for _, megabytes in self.samples), default=0.0)


def measure(
    command: list[str], log: Path, happened: Callable[[], bool] = lambda: False, memory: bool = True
) -> Measured:
    """Run a command to its end; its output goes to a log."""
    result = Measured()
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        watcher = threading.Thread(target=watch, args=(process, result, begun, happened, memory))
        watcher.start()
        result.returncode = process.wait()
        result.seconds = time.monotonic() - begun
        watcher.join()
    result.output = log.read_text(errors="replace")
    return result


def watch(
    process: subprocess.Popen, result: Measured, begun: float, happened: Callable[[], bool], memory: bool
) -> None:
    """Take samples until a process ends."""
    while process.poll() is None:
        now = time.monotonic() - begun
        if memory:
            result.samples.append((now, tree_megabytes(process.pid)))
        if result.first is None and happened():
            result.first = now
        time.sleep(EVERY_SECONDS)


def tree_megabytes(pid: int) -> float:
    """Return the proportional set size of a process and all below it, in MB."""
    return sum(map(proportional_bytes, process_tree(pid))) / 1e6


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; none where it has ended."""
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def proportional_bytes(process: psutil.Process) -> int:
    """Return a process' proportional set size, 0 where it has just ended."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def draw_memory(runs: dict[int, Measured], picture: Path, job: str) -> None:
    """Write the memory of runs over 1, 4, ... times as much input over time as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for times, run in runs.items():
        seconds, megabytes = np.array(run.samples).T
        axes.plot(seconds, megabytes, label=f"{times}x input: peak {run.peak:,.0f} MB")
    axes.set(title=f"{job}: memory of the whole process tree", xlabel="seconds", ylabel="MB", ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=150)
    print(f"plot: {picture.absolute()}")


class simulated_nodes:  # noqa: N801 - reads as a phrase: `with simulated_nodes(4) as address`
    """A Ray cluster of several nodes on this machine, each with one core."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def __enter__(self) -> str:
        from ray.cluster_utils import Cluster

        os.environ["RAY_AUTH_MODE"] = "disabled"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(self.nodes - 1):
            self.cluster.add_node(num_cpus=1)
        return self.cluster.address

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()
        time.sleep(2)
