"""The train job through Ray against the bare loop of its steps on batches that lie in memory.

    python tests/bench/training.py ray --steps 200

All train one epoch over the same shards of natural text, at the same time and in turns of some seconds: the processes
of the others stand still while those of one run, so that all meet the machine at the same speed. A step's time is held
against that of the same step elsewhere; a step in which a turn ended counts nowhere. The bare loop takes part twice,
begun before the job and after it: how far the two are apart, with the pages that each happened to get, is the error.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

TURN_SECONDS = 4.0
FIRST_STEPS = 10
"""Left out: kernels are made for new shapes."""


def compare_with_job(options: argparse.Namespace) -> None:
    """Print the target tokens a second of the job, of the bare loop, and their ratio (asked: 0.95)."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(options, Path(folder))
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(2)]
        first, second = (context.Process(target=train_bare, args=(there, job, options.device)) for _, there in pipes)
        take_turns([first, context.Process(target=run_job, args=(job,)), second])
        (before, tokens), (after, _) = (here.recv() for here, _ in pipes)
        steps = list(zip(before, job_seconds(job), after, tokens, strict=True))[FIRST_STEPS:]
    whole = [step for step in steps if max(step[:3]) < TURN_SECONDS]
    *seconds, done = (sum(column) for column in zip(*whole, strict=True))
    print(f"{len(whole)} of {len(steps)} steps were whole everywhere")
    print("bare loop, job, bare loop: {:,.0f}, {:,.0f}, {:,.0f} target tokens/s".format(*(done / s for s in seconds)))
    print(f"job / bare loop: {(seconds[0] + seconds[2]) / 2 / seconds[1]:.3f} (asked 0.95)")


def take_turns(sides: list[Any]) -> None:
    """Run processes, with all that they start, to their ends, of which one at a time is awake."""
    for side in sides:
        side.start()
    for side in itertools.cycle(sides):
        others = [other for other in sides if other is not side and other.is_alive()]
        if not others and not side.is_alive():
            return
        for other in others:
            signal_all(other.pid, psutil.Process.suspend)
        if side.is_alive():
            signal_all(side.pid, psutil.Process.resume)
            side.join(TURN_SECONDS if others else None)


def signal_all(pid: int, send: Any) -> None:
    """Suspend or resume a process and all that it has started."""
    from tests.bench.processes import process_tree

    for process in process_tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            send(process)


def make_job(options: argparse.Namespace, folder: Path) -> Any:
    """Return a train job over freshly tokenized prose, about as many steps as asked for."""
    from tests.bench.text import write_pairs
    from tfray.config import (
        BatchesConfig,
        CorpusConfig,
        ModelConfig,
        TokenizeJob,
        TokensConfig,
        TrainingConfig,
        TrainJob,
    )
    from tfray.tokens.tokenize import tokenize

    write_pairs(folder / "text", options.steps * options.max_tokens * 8 / 1e6, files=2)
    corpus = CorpusConfig(train=[str(folder / "text")])
    tokens = str(folder / "tokens")
    tokenize(TokenizeJob(out=tokens, corpus=corpus, tokens=TokensConfig(vocab_size=options.vocab, max_length=100)))
    every = 10**9
    training = TrainingConfig(
        epochs=1,
        log_every=1,
        validate_every=every,
        checkpoint_every=every,
        learning_rate=1e-4,
        use_gpu="yes" if options.device == "cuda" else "no",
    )
    return TrainJob(
        tokens_folder=tokens,
        out=str(folder / "out"),
        model=ModelConfig(preset=options.size),
        batches=BatchesConfig(max_tokens=options.max_tokens, lanes=1),
        training=training,
    )


def run_job(job: Any) -> None:
    """Train."""
    from tfray.training.train import train

    train(job)


def job_seconds(job: Any) -> list[float]:
    """Return the seconds of each step, waiting for data and writing its log line included."""
    from tfray.training.log import LogReader

    events = (event for event in LogReader(job.out).new_events() if event["event"] == "train")
    return [event["target_tokens_per_step"] / event["target_tokens_per_second"] for event in events]


def train_bare(pipe: Any, job: Any, device: str) -> None:
    """Train one epoch on batches in memory, on the job's kind of device; send each step's seconds and target tokens."""
    import torch

    from tfray.batches.batch import collate
    from tfray.batches.plan import plan_pool
    from tfray.batches.pool import read_shards
    from tfray.model.architecture import resolve
    from tfray.model.precision import choose_dtype, prepare_cpu
    from tfray.model.transformer import Transformer
    from tfray.tokens.shards import open_tokens
    from tfray.training.replicated import Replicated
    from tfray.training.step import train_step

    prepare_cpu(os.cpu_count() or 1)
    tokens = open_tokens(job.tokens_folder)
    source, target = pairs = read_shards(tokens.paths("train"))
    steps = plan_pool(*pairs.lengths, job.batches, epoch=0, pool=0)
    batches = [collate(source.take(rows), target.take(rows)) for (rows,) in steps]
    architecture = resolve(job.model, tokens.manifest["vocab_size"], 100)
    model = Transformer(architecture).to(device)
    state = Replicated(model, job.training, choose_dtype("auto", torch.device(device)))
    state.model.train()
    seconds, done = [], []
    for index, batch in enumerate(batches):
        begun = time.perf_counter()
        done.append(train_step(state, [batch], [index], 1e-4, job.training).target_tokens)
        seconds.append(time.perf_counter() - begun)
    pipe.send((seconds, done))
