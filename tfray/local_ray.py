"""A Ray of this machine's own, without the processes that serve a dashboard or a cluster.

With them Ray is up in 6.7 s on two cores, without in 1.7 s; and they take 2% of a core for as long as it is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

MOST_STARTING = 4


def start(cpus: int | None, dashboard: bool, **options: object) -> None:
    """Start Ray on this machine; options are those of `ray.init`."""
    import ray

    with told(environment(cpus or os.cpu_count() or 1)), contextlib.nullcontext() if dashboard else few_processes():
        ray.init(address="local", num_cpus=cpus, include_dashboard=dashboard, **options)  # type: ignore[arg-type]


def environment(cpus: int) -> dict[str, str]:
    """Return what Ray's processes are to know, on a machine with so many cores for it."""
    return {
        # Ray's workers are nice by 15, so that Ray's own processes and the driver take a busy core from them whenever
        # they stir: on two cores that is 5 % and more of the work.
        "RAY_worker_niceness": "0",
        # Nobody announces to this one machine that it will be taken away; a signal comes to tfray itself.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # People are warned of four times as many workers as may start at once (as many as there are cores), which a
        # training on one core has.
        "RAY_worker_maximum_startup_concurrency": str(max(MOST_STARTING, cpus)),
    }


@contextlib.contextmanager
def told(environment: dict[str, str]) -> Iterator[None]:
    """Let processes that start in the block find these variables, but for those that people have set otherwise; later
    ones, of another Ray, do not."""
    added = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """Let a Ray that starts in the block do without dashboard, autoscaler and log monitor, and its node's agent without
    what these ask of it: Ray has no option for that, though it tells the agent so where their packages are missing."""
    from ray._private import node, utils

    class FewProcesses(node.Node):
        def start_api_server(self, **_: object) -> None:
            """Nobody looks at a dashboard."""

        def start_monitor(self) -> None:
            """No machine is added to this one."""

        def start_log_monitor(self) -> None:
            """What workers print is for their log files alone."""

    usual = node.Node, utils.get_dashboard_dependency_error
    node.Node, utils.get_dashboard_dependency_error = FewProcesses, lambda: ImportError("none is wanted")
    try:
        yield
    finally:
        node.Node, utils.get_dashboard_dependency_error = usual
