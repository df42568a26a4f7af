"""The training step against Hugging Face's Marian, and against the machine: one run, one table of ratios.

    pip install -e .[bench]
    python tests/bench/training.py                              # small
    python tests/bench/training.py --size base --rounds 3 --only tfray   # with the peer, hours on two cores
    python tests/bench/training.py --threads 1 --clock cpu      # what a busy machine can still say
    python tests/bench/training.py memory --steps 2000          # how memory grows over so many steps of new shapes
    python tests/bench/training.py ray --steps 120              # the train job against the bare loop
    python tests/bench/training.py --size big --device cuda --max-tokens 25000   # MFU on a GPU

Every contender trains a model of the same size on the same batches, which lie in memory: bucketed pairs of log-normal
lengths of mean 16 tokens, label smoothing 0.1, dropout 0.1, AdamW. Each lives in processes of its own; they take
turns, round by round, so that a busy machine hurts all alike, and the median over the rounds counts. The matrix rate
is measured in the same turns; the share of it is by counted FLOPs: the products of the model and its vocabulary
projection, forward and backward, padding included. A processor without fast products in bf16 is measured in fp32 alone.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
HF, OURS, RATE = "transformers", "tfray", "matrix products"


class Contender(NamedTuple):
    """A way to train: an engine in a precision, by so many workers with so many threads each."""

    engine: str
    precision: str
    attention: str = ""
    """Hugging Face: its attention."""
    workers: int = 1
    threads: int = 1
    lanes: int = 1
    """Micro-batches a step, over all workers."""

    @property
    def name(self) -> str:
        parts = [self.engine, self.precision, self.attention]
        if self.engine == OURS and self.lanes > 1:
            parts.append(f"{self.lanes} lanes, {self.workers} x {self.threads}")
        return " ".join(filter(None, parts))


class Setup(NamedTuple):
    """What all contenders share."""

    size: str
    vocab: int
    max_tokens: int
    batches: int
    device: str
    clock: str = "wall"
    renews: bool = False
    """True where each pass over the micro-batches finds other ones, of other lengths, as a long training does."""


class Turn(NamedTuple):
    """What a contender did in one round."""

    seconds: float
    target_tokens: int
    flops: float
    megabytes: float
    """Memory of the process, or of the GPU: the peak so far."""

    @property
    def speed(self) -> float:
        return self.target_tokens / self.seconds

    @property
    def rate(self) -> float:
        return self.flops / self.seconds


def make_batches(setup: Setup, epoch: int = 0) -> list[Any]:
    """Return micro-batches as the train job plans them; each epoch has pairs of its own, and so other shapes."""
    import numpy as np

    from tfray.batches.batch import collate
    from tfray.batches.plan import plan_pool
    from tfray.config import BatchesConfig
    from tfray.tokens.ragged import Ragged

    random = np.random.default_rng(1 + epoch)
    pairs = setup.batches * setup.max_tokens // 16
    drawn = random.lognormal(-0.125, 0.5, pairs) * 16
    lengths = [np.clip(np.rint(drawn * random.normal(1, 0.15, pairs)), 2, 100).astype(int) for _ in "st"]
    sides = []
    for side in lengths:
        offsets = np.concatenate([[0], np.cumsum(side)])
        sides.append(Ragged(random.integers(3, setup.vocab, offsets[-1]).astype(np.int32), offsets))
    config = BatchesConfig(max_tokens=setup.max_tokens, lanes=1)
    steps = plan_pool(lengths[0], lengths[1] + 1, config, epoch=0, pool=0)
    return [collate(sides[0].take(rows), sides[1].take(rows)) for (rows,) in steps[: setup.batches]]


def architecture_of(setup: Setup) -> Any:
    """Return the network that all contenders have."""
    import dataclasses

    from tfray.model.architecture import PRESETS

    return dataclasses.replace(PRESETS[setup.size], vocab_size=setup.vocab, max_length=512)


def count_flops(setup: Setup, batch: Any) -> float:
    """Return the FLOPs of the matrix products of one micro-batch: forward once, backward twice.

    Layers multiply padding too, the output layer real tokens alone.
    """
    import torch

    from tfray.training.flops import layer_flops, output_flops

    architecture = architecture_of(setup)
    rows, *widths = len(batch.source_ids), batch.source_ids.shape[1], batch.target_ids.shape[1]
    source, target = (torch.full((rows,), float(width)) for width in widths)
    return 3 * (layer_flops(architecture, source, target) + output_flops(architecture, batch.target_tokens))


def build(contender: Contender, setup: Setup, rank: int) -> Callable[[list[Any], int], None]:
    """Return a function that trains one step on its own micro-batches; the number is the step's."""
    import torch

    torch.manual_seed(0)
    if contender.engine == RATE:
        return build_products(contender, setup)
    return build_ours(contender, setup, rank) if contender.engine == OURS else build_marian(contender, setup)


def build_ours(contender: Contender, setup: Setup, rank: int) -> Callable[[list[Any], int], None]:
    import torch

    from tfray.config import TrainingConfig
    from tfray.model.transformer import Transformer
    from tfray.training.replicated import Replicated
    from tfray.training.step import train_step

    config = TrainingConfig(label_smoothing=0.1)
    dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
    state = Replicated(Transformer(architecture_of(setup)).to(setup.device), config, dtype)
    state.model.train()

    def step(batches: list[Any], number: int) -> None:
        seeds = [number * contender.lanes + rank + contender.workers * index for index in range(len(batches))]
        train_step(state, batches, seeds, 1e-4, config)

    return step


def build_marian(contender: Contender, setup: Setup) -> Callable[[list[Any], int], None]:
    import torch
    from torch.nn import functional as F

    from tests.bench.twins import make_marian

    model = make_marian(setup.size, setup.vocab, dropout=0.1, attention=contender.attention).to(setup.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)

    def step(batches: list[Any], number: int) -> None:
        for batch in (batch.to(torch.device(setup.device)) for batch in batches):
            with torch.autocast(setup.device, torch.bfloat16, enabled=contender.precision == "bf16"):
                logits = model(
                    input_ids=batch.source_ids,
                    attention_mask=(batch.source_ids != 0).long(),
                    decoder_input_ids=batch.target_ids,
                    use_cache=False,
                ).logits
                loss = F.cross_entropy(
                    logits.flatten(0, 1), batch.label_ids.flatten(), ignore_index=0, label_smoothing=0.1
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


PRODUCT = 2048
PRODUCTS = 16
"""Products in place of a micro-batch: threads take some to wake up, which must not count as the machine's limit."""


def build_products(contender: Contender, setup: Setup) -> Callable[[list[Any], int], None]:
    import torch

    dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
    first, second = (torch.randn(PRODUCT, PRODUCT, device=setup.device).to(dtype) for _ in "ab")
    result = torch.empty_like(first)

    def step(batches: list[Any], number: int) -> None:
        for _ in range(PRODUCTS * len(batches)):
            torch.mm(first, second, out=result)

    return step


def serve(pipe: Any, contender: Contender, setup: Setup, rank: int, port: int) -> None:
    """Train a round whenever asked, in a process of its own."""
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    from tfray.model.precision import prepare_cpu

    if contender.engine == HF:
        torch.set_num_threads(contender.threads)
    else:
        prepare_cpu(contender.threads)
    if contender.workers > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=contender.workers)
    batches = make_batches(setup)
    flops = [
        PRODUCTS * 2.0 * PRODUCT**3 if contender.engine == RATE else count_flops(setup, batch) for batch in batches
    ]
    step = build(contender, setup, rank)
    pipe.send("ready")
    now = time.perf_counter if setup.clock == "wall" else time.process_time
    done = 0
    while (steps := pipe.recv()) is not None:
        seconds = tokens = work = 0.0
        for number in range(done, done + steps):
            first = number * contender.lanes
            if setup.renews and first and first % len(batches) < contender.lanes:
                batches = make_batches(setup, first // len(batches))
                flops = [count_flops(setup, batch) for batch in batches]
            places = [(first + lane) % len(batches) for lane in range(contender.lanes)]
            own = [batches[place] for place in places[rank :: contender.workers]]
            begun = now()
            step(own, number)
            if setup.device == "cuda":
                torch.cuda.synchronize()
            seconds += now() - begun
            tokens += sum(batches[place].target_tokens for place in places)
            work += sum(flops[place] for place in places)
        done += steps
        pipe.send(Turn(seconds, int(tokens), work, peak_megabytes(setup.device)))


def peak_megabytes(device: str) -> float:
    """Return the most memory so far of the GPU, or of this process."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Team:
    """The processes of a contender."""

    def __init__(self, contender: Contender, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender, self.turns = contender, []
        self.pipes, self.processes = [], []
        port = free_port()
        for rank in range(contender.workers):
            here, there = context.Pipe()
            os.environ.update({"OMP_NUM_THREADS": str(contender.threads), "MKL_NUM_THREADS": str(contender.threads)})
            process = context.Process(target=serve, args=(there, contender, setup, rank, port), daemon=True)
            process.start()
            there.close()  # so that the end of a process is heard of
            self.pipes.append(here)
            self.processes.append(process)
        assert [pipe.recv() for pipe in self.pipes] == ["ready"] * contender.workers

    def run(self, steps: int) -> Turn:
        """Return what all workers did together in so many steps."""
        for pipe in self.pipes:
            pipe.send(steps)
        turns = [pipe.recv() for pipe in self.pipes]
        slowest = max(turns, key=lambda turn: turn.seconds)
        return slowest._replace(megabytes=sum(turn.megabytes for turn in turns))

    def median(self, name: str) -> float:
        return statistics.median(getattr(turn, name) for turn in self.turns)

    @property
    def spread(self) -> float:
        """Half the distance of the fastest and the slowest round, as a share of the median."""
        speeds = [turn.speed for turn in self.turns]
        return (max(speeds) - min(speeds)) / 2 / self.median("speed")

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fast_precisions(device: str) -> list[str]:
    """Return the precisions that a device is fast in, the fastest last."""
    import torch

    from tfray.model.precision import has_fast_bf16

    return ["fp32", "bf16"] if has_fast_bf16(torch.device(device)) else ["fp32"]


def contenders(device: str, threads: int) -> list[Contender]:
    """Return who takes part; on a CPU with all cores, or a worker a core."""
    precisions = fast_precisions(device)
    best = precisions[-1]
    chosen = [
        Contender(RATE, best, threads=threads),
        *(Contender(OURS, precision, threads=threads) for precision in precisions),
        *(
            Contender(HF, precision, attention, threads=threads)
            for precision in precisions
            for attention in ("eager", "sdpa")
        ),
    ]
    if device == "cpu" and threads > 1:
        chosen += [
            Contender(OURS, best, threads=threads, lanes=2),
            Contender(OURS, best, workers=2, threads=max(1, threads // 2), lanes=2),
        ]
    return chosen


def compare(options: argparse.Namespace, setup: Setup) -> None:
    """Let the contenders take turns, and print the table and the ratios that are asked for."""
    chosen = [each for each in contenders(setup.device, options.threads) if is_wanted(each, options.only)]
    # A GPU has no room for what all of them keep: there they come one after the other, and one that fails is left out.
    races = [[each] for each in chosen] if setup.device == "cuda" else [chosen]
    print_table([team for race in races for team in run_race(race, options, setup)], setup)


def run_race(chosen: list[Contender], options: argparse.Namespace, setup: Setup) -> list[Team]:
    """Let contenders take turns, and return them with what they did; none where a single one fails."""
    try:
        teams = [Team(contender, setup) for contender in chosen]
        for team in teams:
            team.run(max(1, options.warmup // team.contender.lanes))
        for _ in range(options.rounds):
            for team in teams:
                team.turns.append(team.run(max(1, options.steps // team.contender.lanes)))
            speeds = (f"{team.contender.name} {team.turns[-1].speed:,.0f}" for team in teams)
            print("round:", ", ".join(speeds), flush=True)
    except EOFError:
        if len(chosen) > 1:
            raise
        print(f"{chosen[0].name} does not run here: its error is above", flush=True)
        return []
    for team in teams:
        team.close()
    return teams


def is_wanted(contender: Contender, engines: list[str] | None) -> bool:
    """Say whether a contender takes part where only some engines do; the machine always does."""
    return not engines or contender.engine in (RATE, *engines)


def print_table(teams: list[Team], setup: Setup) -> None:
    rate = next(team for team in teams if team.contender.engine == RATE)
    matrix, best = rate.median("rate"), rate.contender.precision
    where = f"{setup.device}, {setup.clock} clock"
    print(f"\n{setup.size}, vocabulary {setup.vocab}, about {setup.max_tokens} tokens a micro-batch, {where}")
    print(f"measured {best} matrix rate ({PRODUCT} x {PRODUCT}): {matrix / 1e9:,.0f} GFLOP/s")
    print(f"{'':32} {'target tokens/s':>15} {'spread':>7} {'GFLOP/s':>8} {'of matrix rate':>14} {'peak MB':>8}")
    for team in teams:
        if team.contender.engine != RATE:
            found = team.median("rate")
            print(
                f"{team.contender.name:32} {team.median('speed'):15,.0f} {team.spread:7.1%} {found / 1e9:8,.0f} "
                f"{found / matrix:14.2f} {team.median('megabytes'):8,.0f}"
            )
    speed = {team.contender.name: team.median("speed") for team in teams}
    ours = next(team for team in teams if team.contender[:2] == (OURS, best))

    def ratio(mine: str, theirs: str) -> float:
        peers = [speed[name] for kind in ("eager", "sdpa") if (name := f"{HF} {theirs} {kind}") in speed]
        return speed.get(f"{OURS} {mine}", math.nan) / max(peers, default=math.nan)

    if any(team.contender.engine == HF for team in teams):
        if best == "bf16":
            print(f"tfray bf16 / {HF} fp32: {ratio('bf16', 'fp32'):.2f} (asked 3 for small)")
            print(f"tfray bf16 / {HF} bf16: {ratio('bf16', 'bf16'):.2f} (asked 1.5; on a GPU 2)")
        print(f"tfray fp32 / {HF} fp32: {ratio('fp32', 'fp32'):.2f}")
    print(f"share of the matrix rate: {ours.median('rate') / matrix:.2f} (asked 0.30 for small, 0.45 for base)")
    several = [team.median("speed") for team in teams if team.contender.lanes > 1]
    if several:
        print(f"two workers / one with all threads: {several[1] / several[0]:.2f} (asked 0.85)")
    if setup.device == "cuda":
        print_mfu(ours)


def print_mfu(team: Team) -> None:
    """Print the share of a GPU's peak, where its data sheet is known."""
    import torch

    from tfray.training.flops import known_peak

    device = torch.cuda.get_device_name()
    peak = known_peak(device)
    mfu = f"MFU {team.median('rate') / peak:.1%} of {peak / 1e12:.0f} TFLOP/s" if peak else "its peak is not known"
    print(f"{device}: {mfu} (asked 35 % for big)")
    print(f"{team.median('speed'):,.0f} target tokens/s (asked 260,000 for big)")


def measure_growth(options: argparse.Namespace, setup: Setup) -> None:
    """Print how the memory of our step grows over many steps, whose shapes are ever new ones."""
    best = fast_precisions(setup.device)[-1]
    team = Team(Contender(OURS, best, threads=options.threads), setup._replace(renews=True))
    parts = 10
    peaks = [team.run(options.steps // parts).megabytes for _ in range(parts)]
    print(f"{best}, peak memory after each tenth of {options.steps} steps, MB: {', '.join(f'{p:,.0f}' for p in peaks)}")
    print(f"growth after the first half: {peaks[-1] - peaks[parts // 2 - 1]:,.1f} MB (asked: none)")
    team.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="step", choices=["step", "memory", "ray"])
    parser.add_argument("--size", default="small", choices=["tiny", "small", "base", "big"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--max-tokens", type=int, default=4096, help="padded tokens of a micro-batch")
    parser.add_argument("--batches", type=int, default=24, help="different micro-batches")
    parser.add_argument("--steps", type=int, default=12, help="micro-batches a turn, or in all")
    parser.add_argument("--warmup", type=int, default=24, help="micro-batches before the first round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[OURS, HF], help="engines that take part; default: all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of one worker, on a CPU")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a busy machine, one thread")
    options = parser.parse_args()
    setup = Setup(options.size, options.vocab, options.max_tokens, options.batches, options.device, options.clock)
    if options.what == "ray":
        from tests.bench.training_job import compare_with_job

        compare_with_job(options)
    elif options.what == "memory":
        measure_growth(options, setup)
    else:
        compare(options, setup)


if __name__ == "__main__":
    main()
