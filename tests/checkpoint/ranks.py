"""Real worker processes that talk by gloo, forked from a server that has torch imported: each starts in a moment."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
# The first DTensor imports torch._dynamo, for seconds: here once for all.
CONTEXT.set_forkserver_preload(["torch._dynamo", "tests.checkpoint.samples", "tests.checkpoint.ranks"])


def run_ranks(workers: int, folder: Path, function: Callable[..., Any], *arguments: object) -> list[Any]:
    """Return what a function gives on each of several ranks; an exception is returned too."""
    store, pipes, processes = folder / f"store-{uuid.uuid4().hex}", [], []
    for rank in range(workers):
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=be_rank, args=(rank, workers, str(store), there, function, arguments))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    answers = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return answers


def be_rank(
    rank: int, workers: int, store: str, pipe: Connection, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
    pipe.send(answer)
    dist.barrier()
    dist.destroy_process_group()
