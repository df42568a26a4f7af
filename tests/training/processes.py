"""Real worker processes connected by torch.distributed: over gloo on CPUs, over nccl with a GPU each."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

# Processes are forked from a server that has imported these once.
multiprocessing.set_forkserver_preload(["tfray.training.parallel"])


def run_workers(count: int, work: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> list[Any]:
    """Return what `work` returns on each of so many connected workers; an error in one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (count, folder, backend, work, arguments)
        torch.multiprocessing.start_processes(run_worker, settings, count, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def run_worker(rank: int, count: int, folder: str, backend: str, work: Callable[..., Any], arguments: tuple) -> None:
    """Connect to the other workers, work, and leave the result in a file."""
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    store = f"file://{folder}/store"
    dist.init_process_group(backend, store, rank=rank, world_size=count, timeout=timedelta(seconds=60))
    try:
        torch.save(work(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
