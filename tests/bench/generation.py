"""Generation against Hugging Face and CTranslate2: the same weights, equal work, one table of ratios.

    pip install -e .[bench]
    python tests/bench/generation.py                        # small and base, greedy and beam 4
    python tests/bench/generation.py --sizes base --vocab 32000 --rows 512

Every engine gets all cores in the way that suits it best, and its best batch size of those tried. Engines
take turns, and the best of several rounds counts, so that a busy machine hurts all alike. Outputs are of a
fixed length (min = max), and the share of rows on which an engine agrees with Hugging Face is printed.
On a machine with a GPU the same table is made on it (`--device cuda`; the default is cpu). The share of the
machine's limit, in memory bandwidth and in arithmetic, is printed for ours, and on a GPU the peak of memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.bench.limits import Rates

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
HF, CT2, OURS = "transformers", "ctranslate2", "tfray"


class Contender(NamedTuple):
    """An engine in a precision, run by so many processes with so many threads."""

    engine: str
    precision: str
    processes: int
    threads: int

    @property
    def name(self) -> str:
        several = f" x {self.processes}" if self.engine == HF and self.processes > 1 else ""
        return f"{self.engine} {self.precision}{several}"


class Work(NamedTuple):
    """What every process does in one timed round."""

    beam_size: int
    batch: int
    output: int
    sources: list[list[int]]
    follows_source: bool = False  # outputs are as long as their sources


def build(contender: Contender, size: str, vocab: int, device: str, folder: str) -> Any:
    """Return a function from work to outputs."""
    import torch

    from tests.bench.twins import make_marian, ours_from_marian

    torch.set_num_threads(contender.threads)
    if contender.engine == CT2:
        import ctranslate2

        translator = ctranslate2.Translator(
            os.path.join(folder, contender.precision),
            device=device,
            compute_type={"fp32": "float32", "int8": "int8", "fp16": "float16", "bf16": "bfloat16"}[
                contender.precision
            ],
            inter_threads=1,
            intra_threads=contender.threads,
        )
        # What a GPU lacks for it, such as CUDA 12's libcublas beside a torch for CUDA 13, shows at the first product.
        translator.translate_batch([["t3", "</s>"]], max_decoding_length=1)
        return lambda work: run_ctranslate2(translator, work)
    marian = make_marian(size, vocab)
    if contender.engine == HF:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[contender.precision]
        marian = marian.to(device, dtype)
        return lambda work: run_transformers(marian, work, device)
    from tfray.generation.network import Network
    from tfray.model.precision import prepare_cpu

    prepare_cpu(contender.threads)
    network = Network(ours_from_marian(marian).to(device), contender.precision)  # type: ignore[arg-type]
    return lambda work: run_ours(network, work)


def run_ours(network: Any, work: Work) -> list[list[int]]:
    from tfray.config import GenerationConfig
    from tfray.generation.generate import generate

    lengths: dict[str, Any] = dict(min_length=work.output - 1, max_length=work.output)
    if work.follows_source:
        lengths = dict(min_length_ratio=1.0, max_length_ratio=1.0, max_length_extra=1)
    config = GenerationConfig(beam_size=work.beam_size, batch_rows=work.batch, early_stopping="beam", **lengths)
    return [output.best.ids for output in generate(network, work.sources, config)]


def run_transformers(marian: Any, work: Work, device: str) -> list[list[int]]:
    import torch

    order = sorted(range(len(work.sources)), key=lambda row: -len(work.sources[row]))
    found: list[list[int]] = [[]] * len(order)
    for start in range(0, len(order), work.batch):
        rows = order[start : start + work.batch]
        longest = max(len(work.sources[row]) for row in rows)
        ids = torch.tensor(
            [[*work.sources[row], *[0] * (longest - len(work.sources[row]))] for row in rows], device=device
        )
        with torch.inference_mode():
            outputs = marian.generate(
                input_ids=ids,
                attention_mask=(ids != 0).long(),
                num_beams=work.beam_size,
                do_sample=False,
                min_new_tokens=work.output,
                max_new_tokens=work.output,
                length_penalty=1.0,
            )
        for row, output in zip(rows, outputs.tolist(), strict=True):
            found[row] = output[1:]
    return found


def run_ctranslate2(translator: Any, work: Work) -> list[list[int]]:
    named = [[f"t{token}" if token > 2 else "</s>" for token in source] for source in work.sources]
    results = translator.translate_batch(
        named,
        max_batch_size=work.batch,
        beam_size=work.beam_size,
        min_decoding_length=work.output,
        max_decoding_length=work.output,
        length_penalty=1.0,
        suppress_sequences=[["<pad>"], ["<s>"]],
    )
    return [[int(token[1:]) if token[0] == "t" else 2 for token in result.hypotheses[0]] for result in results]


def serve(pipe: Any, contender: Contender, size: str, vocab: int, device: str, folder: str) -> None:
    """Run work as it comes, in a process of its own."""
    import warnings

    warnings.filterwarnings("ignore")
    run = build(contender, size, vocab, device, folder)
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        if work == "rates":
            from tests.bench.limits import measure_rates

            pipe.send(measure_rates(device, contender.precision))
            continue
        start = time.perf_counter()
        outputs = run(work)
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start, outputs))
        if device == "cuda":
            print(f"{contender.name}: peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GB", flush=True)
            torch.cuda.reset_peak_memory_stats()


class Team:
    """The processes of a contender."""

    def __init__(self, contender: Contender, size: str, vocab: int, device: str, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender, self.pipes, self.processes = contender, [], []
        for _ in range(contender.processes):
            here, there = context.Pipe()
            environment = {"OMP_NUM_THREADS": str(contender.threads), "MKL_NUM_THREADS": str(contender.threads)}
            os.environ.update(environment)
            process = context.Process(target=serve, args=(there, contender, size, vocab, device, folder), daemon=True)
            process.start()
            there.close()  # so that the end of a process is heard of
            self.pipes.append(here)
            self.processes.append(process)
        assert [pipe.recv() for pipe in self.pipes] == ["ready"] * contender.processes

    def run(self, work: Work) -> tuple[float, list[list[int]]]:
        """Return output tokens per second of all processes together, and the outputs."""
        # Dealt out in turn, so that sorted or random lengths are shared alike.
        for number, pipe in enumerate(self.pipes):
            pipe.send(work._replace(sources=work.sources[number :: len(self.pipes)]))
        answers = [pipe.recv() for pipe in self.pipes]
        outputs = [answers[row % len(answers)][1][row // len(answers)] for row in range(len(work.sources))]
        tokens = sum(map(len, outputs)) if work.follows_source else work.output * len(outputs)
        return tokens / max(seconds for seconds, _ in answers), outputs

    def rates(self) -> Rates:
        """Return what all processes together can do at most, in the contender's precision."""
        from tests.bench.limits import Rates

        for pipe in self.pipes:
            pipe.send("rates")
        each = [pipe.recv() for pipe in self.pipes]
        return Rates(sum(rates.bytes for rates in each), sum(rates.operations for rates in each))

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def started(contender: Contender, size: str, vocab: int, device: str, folder: str) -> list[Team]:
    """Return a contender's processes; none where it does not run on this machine: the others do without it."""
    try:
        return [Team(contender, size, vocab, device, folder)]
    except EOFError:
        print(f"{contender.name} does not run here: its error is above", flush=True)
        return []


def contenders(device: str) -> list[Contender]:
    """Return the engines; on a CPU each gets all cores in the way that suits it best."""
    if device == "cuda":
        return [
            *(Contender(HF, precision, 1, 1) for precision in ("fp32", "bf16")),
            *(Contender(CT2, precision, 1, 1) for precision in ("fp16", "bf16")),
            *(Contender(OURS, precision, 1, 1) for precision in ("fp32", "bf16")),
        ]
    cores = len(os.sched_getaffinity(0))
    return [
        Contender(HF, "fp32", 1, cores),
        Contender(HF, "fp32", cores, 1),
        *(Contender(CT2, precision, cores, 1) for precision in ("fp32", "int8")),
        *(Contender(OURS, precision, cores, 1) for precision in ("fp32", "bf16", "int8")),
    ]


def measure(teams: list[Team], work: Work, batches: dict[str, list[int]], rounds: int) -> list[list[Any]]:
    """Return a row of the table for each team: name, best batch, tokens/s, and agreement with the first."""
    best: dict[str, tuple[float, int]] = {}
    outputs: dict[str, list[list[int]]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for team in teams:
            for batch in batches[team.contender.engine]:
                if number > 1 and batch != best[team.contender.name][1]:
                    continue  # the best batch of the first timed round goes on
                speed, found = team.run(work._replace(batch=batch))
                if number:
                    outputs[team.contender.name] = found
                    best[team.contender.name] = max(best.get(team.contender.name, (0.0, 0)), (speed, batch))
    reference = outputs[teams[0].contender.name]
    table = []
    for team in teams:
        speed, batch = best[team.contender.name]
        own = outputs[team.contender.name]
        same = sum(
            one[: work.output - 1] == other[: work.output - 1] for one, other in zip(own, reference, strict=True)
        )
        table.append([team.contender.name, batch, speed, same / len(reference)])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--source", type=int, default=16)
    parser.add_argument("--output", type=int, default=16)
    parser.add_argument("--rows", type=int, help="default: 512, on a GPU 2,048")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", nargs="+", type=int, help="default: 32 64 128, on a GPU 128 256 512")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", help="names of contenders, such as 'tfray int8'")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.rows = options.rows or (2048 if on_gpu else 512)
    options.batches = options.batches or ([128, 256, 512] if on_gpu else [32, 64, 128])
    from tests.bench.twins import make_marian, save_ctranslate2, some_sources

    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            marian = make_marian(size, options.vocab)
            chosen = [each for each in contenders(options.device) if not options.only or each.name in options.only]
            for contender in chosen:
                if contender.engine == CT2:
                    kind = {"fp32": None, "int8": "int8", "fp16": "float16", "bf16": "bfloat16"}[contender.precision]
                    save_ctranslate2(marian, os.path.join(folder, contender.precision), kind)
            place = size, options.vocab, options.device, folder
            teams = [team for contender in chosen for team in started(contender, *place)]
            for beam_size in options.beams:
                rows = options.rows if beam_size == 1 else options.rows // 2
                sources = some_sources(rows, options.source, options.vocab, seed=1)
                work = Work(beam_size, 0, options.output, sources)
                batches = dict.fromkeys((HF, CT2, OURS), options.batches)
                table = measure(teams, work, batches, options.rounds)
                print_table(f"{size}, {'greedy' if beam_size == 1 else f'beam {beam_size}'}", table)
                print_limits(
                    size, [team for team in teams if team.contender.engine == OURS], table, work, options.vocab
                )
                measure_lengths(size, [team for team in teams if team.contender.engine == OURS], work, options)
            for team in teams:
                team.close()


def measure_lengths(size: str, teams: list[Team], work: Work, options: argparse.Namespace) -> None:
    """Print our throughput on log-normal lengths against equal ones; outputs are as long as their sources."""
    from tests.bench.twins import some_sources

    # Many more rows than slots, as in a data set: with few, the longest rows alone decide.
    batch = min(options.batches)
    rows = 8 * batch * len(teams[0].pipes) if teams else 0
    equal = some_sources(rows, options.source, options.vocab, seed=1)
    # Sorted, since rows are dealt out in turn: the processes get as many tokens each.
    mixed = sorted(some_sources(rows, options.source, options.vocab, seed=2, log_normal=True), key=len)
    for team in teams:
        best = {True: 0.0, False: 0.0}
        for _ in range(options.rounds + 1):
            for is_mixed, sources in ((False, equal), (True, mixed)):
                speed, _ = team.run(work._replace(sources=sources, follows_source=True, batch=batch))
                best[is_mixed] = max(best[is_mixed], speed)
        print(
            f"{size}, beam {work.beam_size}, {team.contender.name}: {best[False]:,.0f} tokens/s with equal lengths, "
            f"{best[True]:,.0f} with log-normal ones: {best[True] / best[False]:.2f}",
            flush=True,
        )


def print_limits(size: str, teams: list[Team], table: list[list[Any]], work: Work, vocab: int) -> None:
    """Print the shares of the memory bandwidth and of the arithmetic that our runs used."""
    from dataclasses import replace

    from tests.bench.limits import need_of
    from tfray.model.architecture import PRESETS

    best = {name: (batch, speed) for name, batch, speed, _ in table}
    rows, source, shape = len(work.sources), len(work.sources[0]), replace(PRESETS[size], vocab_size=vocab)
    for team in teams:
        if team.contender.precision == "int8":
            continue
        (batch, speed), rates, count = best[team.contender.name], team.rates(), len(team.pipes)
        element = 4 if team.contender.precision == "fp32" else 2
        # Each process reads the weights for its own rows.
        need = need_of(shape, rows // count, source, work.output, work.beam_size, batch, element).times(count)
        memory, arithmetic = need.shares(work.output * rows / speed, rates)
        print(
            f"{size}, beam {work.beam_size}, {team.contender.name}, batch {batch}: "
            f"{memory:.2f} of the memory bandwidth ({rates.bytes / 1e9:,.0f} GB/s), {arithmetic:.2f} of the arithmetic "
            f"({rates.operations / 1e12:,.2f} TFLOP/s)",
            flush=True,
        )


def print_table(title: str, table: list[list[Any]]) -> None:
    speeds = {name: speed for name, _, speed, _ in table}
    bases = [
        name for name in (f"{HF} fp32", f"{HF} fp32 x 2", f"{CT2} fp32", f"{CT2} int8", f"{CT2} fp16") if name in speeds
    ]
    print(f"\n{title}")
    print(f"{'engine':20} {'batch':>5} {'tokens/s':>9} {'agrees':>7}" + "".join(f"{'/ ' + name:>21}" for name in bases))
    for name, batch, speed, same in table:
        ratios = "".join(f"{speed / speeds[base]:21.2f}" for base in bases)
        print(f"{name:20} {batch:5} {speed:9,.0f} {same:7.3f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
