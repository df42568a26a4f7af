"""The train job through Ray against the bare loop of its steps on batches that lie in memory.

    python tests/bench/training.py ray --steps 120

Both train one epoch over the same shards of natural text. The job's rate is that of its own log lines, the first
left out (kernels are made for new shapes); the bare loop runs before and after it, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

LOG_EVERY = 10


def compare_with_job(options: argparse.Namespace) -> None:
    """Print the target tokens a second of the job, of the bare loop, and their ratio (asked: 0.95)."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(options, Path(folder))
        bare = [run_bare(job, options.device)]
        by_job = run_job(job)
        bare.append(run_bare(job, options.device))
    print(f"bare loop, before and after: {bare[0]:,.0f} and {bare[1]:,.0f} target tokens/s")
    print(f"through the train job: {by_job:,.0f} target tokens/s")
    print(f"job / bare loop: {by_job / statistics.mean(bare):.3f} (asked 0.95)")


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
        log_every=LOG_EVERY,
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


def run_job(job: Any) -> float:
    """Return the median rate of the log lines after the first."""
    from tfray.training.log import read_events
    from tfray.training.train import train

    train(job)
    rates = [event["target_tokens_per_second"] for event in read_events(job.out) if event["event"] == "train"]
    print("job, target tokens/s:", ", ".join(f"{rate:,.0f}" for rate in rates))
    return statistics.median(rates[1:])


def run_bare(job: Any, device: str) -> float:
    """Return the median rate of the same steps without Ray."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=train_bare, args=(there, job, device))
    process.start()
    rates = here.recv()
    process.join()
    print("bare, target tokens/s:", ", ".join(f"{rate:,.0f}" for rate in rates))
    return statistics.median(rates[1:])


def train_bare(pipe: Any, job: Any, device: str) -> None:
    """Train one epoch on batches in memory, on the job's kind of device; send the rate of each LOG_EVERY steps."""
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
    rates = []
    for start in range(0, len(batches) - LOG_EVERY + 1, LOG_EVERY):
        begun, done = time.perf_counter(), 0
        for index in range(start, start + LOG_EVERY):
            done += train_step(state, [batches[index]], [index], 1e-4, job.training).target_tokens
        rates.append(done / (time.perf_counter() - begun))
    pipe.send(rates)
