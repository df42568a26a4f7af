"""A real Ray of several nodes on this machine, in a process of its own, for tests that kill parts of it.

Run as a program: it starts a head and some nodes, prints the address, and then does what it is told by
the lines of its input: `add` starts a node, `lose` kills the last one's raylet, `lose NAME` that of one with a
process of this name, an end of input stops all.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A cluster with a head of one core and nodes of one core each."""

    def __init__(self, nodes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self.address = self.answer()

    def answer(self) -> str:
        """Return the next line that the cluster's process prints about itself."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("cluster: "):
                return line.removeprefix("cluster: ").strip()
        raise RuntimeError("the cluster's process has ended")

    def tell(self, order: str) -> None:
        """Have a node added or lost, and wait until it is; raises where there is none to lose."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        assert self.answer() == "done"

    def workers(self, kind: str = "Map") -> list[psutil.Process]:
        """Return the processes that run actors or tasks of Ray Data, or those of another name (a raylet dies with
        its agents: not those)."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if name.startswith("ray::") and kind in name:
                found.append(process)
        return found

    def stop(self) -> None:
        """Stop all nodes."""
        assert self.process.stdin is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def serve(nodes: int) -> None:
    """Run a cluster and obey the lines of the input."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    # With addresses of their own, or a driver on this machine might attach itself to one of them, and die with it.
    addresses = (f"127.0.0.{number}" for number in itertools.count(2))
    others = [cluster.add_node(num_cpus=1, node_ip_address=next(addresses)) for _ in range(nodes - 1)]
    print(f"cluster: {cluster.address}", flush=True)
    for order in sys.stdin:
        if order.strip() == "add":
            others.append(cluster.add_node(num_cpus=1, node_ip_address=next(addresses)))
        else:
            name = order.strip().removeprefix("lose").strip()
            lost = next((node for node in reversed(others) if not name or runs(node, name)), None)
            if lost is None:
                print("cluster: there is no such node", flush=True)
                continue
            others.remove(lost)
            lose(cluster, lost)
        print("cluster: done", flush=True)
    cluster.shutdown()


def processes(node: object) -> list[psutil.Process]:
    """Return a node's raylet and every process below it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
    return [raylet, *raylet.children(recursive=True)]


def runs(node: object, name: str) -> bool:
    """Say whether a node has a process of a name."""
    for process in processes(node):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                return True
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return False


def lose(cluster: object, node: object) -> None:
    """Kill a node as a power cut does: its raylet and every process below it, at once."""
    for process in processes(node):
        kill(process.pid)
    cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]


def kill(process: int) -> None:
    """End a process at once, if it is still there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    from tfray.local_ray import few_processes

    with few_processes():
        serve(int(sys.argv[1]))
