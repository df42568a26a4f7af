"""Ray itself: reach a cluster, or start a quiet one on this machine and stop it again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from tfray import local_ray
from tfray.config import ClusterConfig
from tfray.errors import InputError, Terminated

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


@contextlib.contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Hold a Ray connection for the block; a Ray that was there before stays."""
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    start(config)
    quiet_ray_data()
    end_on_sigterm()
    try:
        yield
    finally:
        if not keeping.get():
            ray.shutdown()
            end_on_sigterm()


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this program as Ctrl-C does.

    Ray's start puts a handler of its own in the place of ours, which exits in the middle, and its end none at all.
    """

    def end(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


keeping: ContextVar[bool] = ContextVar("keeping", default=False)


@contextlib.contextmanager
def connected_once() -> Iterator[None]:
    """Let the first `connected` in the block start Ray, if any does, and only the block's end stop it; a Ray that was
    there before stays."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield
        return
    token = keeping.set(True)
    try:
        yield
    finally:
        keeping.reset(token)
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
            end_on_sigterm()


def start(config: ClusterConfig) -> None:
    """Connect to the configured cluster, or start a local one."""
    import ray

    address = config.address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with muted_stderr():
            if address:
                ray.init(address, **quiet)
            else:
                local_ray.start(config.num_cpus, config.dashboard, **quiet)
    except Exception as error:
        # A plain Exception is what Ray raises where a node does not start in time, as on an overloaded machine.
        if type(error) is Exception or isinstance(error, ConnectionError | ValueError | RuntimeError):
            raise InputError(unreachable(config, error)) from error
        raise


def unreachable(config: ClusterConfig, error: Exception) -> str:
    """Return why there is no Ray, with the true source of its address."""
    if config.address:
        source, remedy = f"cluster.address={config.address!r}", "leave the address out"
    elif os.environ.get("RAY_ADDRESS"):
        source, remedy = f"RAY_ADDRESS={os.environ['RAY_ADDRESS']!r} of the environment", "`unset RAY_ADDRESS`"
    else:
        return f"no local Ray starts: {error}; see its logs in /tmp/ray, or give a cluster by cluster.address"
    return (
        f"{source} does not answer: {error}; start a cluster (`ray start --head`) or {remedy} to use this machine alone"
    )


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr in the block (Ray announces its log level there)."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quiet_ray_data() -> None:
    """Leave the progress display to tfray."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def node_cpus() -> list[float]:
    """Return the CPU cores of each node that has any."""
    import ray

    cores = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return [float(count) for count in cores if count]


def own_cpus() -> int:
    """Return the cores of the machine on which this process runs, as many of them as its node has for Ray."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    cores = next((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == own), 1)
    return max(1, min(os.cpu_count() or 1, int(cores)))


def cluster_total(resource: str) -> float:
    """Return how much of a resource ("CPU", "GPU") the cluster's nodes have in all."""
    import ray

    return float(ray.cluster_resources().get(resource, 0))
