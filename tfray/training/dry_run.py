"""A dry run of training: how large the model is, how many steps and tokens, how much memory, what is written where."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from tfray import storage
from tfray.batches.count import first_epoch
from tfray.batches.plan import Shape, plan_pool, shapes_of
from tfray.checkpoint.state import newest_progress
from tfray.config import BatchesConfig, TrainJob
from tfray.config.batches import usable_workers, worker_counts
from tfray.model.architecture import Architecture, resolve
from tfray.model.precision import choose_dtype, name_of
from tfray.report.tables import format_table
from tfray.tokens.shards import TokenFolder
from tfray.training.display import CURVES
from tfray.training.ends import lacks_average
from tfray.training.folders import AVERAGE
from tfray.training.log import LOG
from tfray.training.memory import FP32, MemorySetting, count_parameters, estimate_memory
from tfray.training.meter import peak_memory
from tfray.training.resume import check_model
from tfray.training.tensorboard import FOLDER
from tfray.units.ledger import Found, find_ledger


@dataclass
class Epoch:
    """What the first epoch's plan holds."""

    pairs: int = 0
    seen: int = 0
    """Pairs in all micro-batches; those that fill the lanes of a pool's last step are seen again."""
    padded: int = 0
    step_tokens: list[int] = field(default_factory=list)
    """Real tokens on both sides, of each step."""
    target_tokens: int = 0
    shapes: Counter[Shape] = field(default_factory=Counter)

    @property
    def padding(self) -> float:
        return 1 - sum(self.step_tokens) / self.padded


def report_dry_run(job: TrainJob, tokens: TokenFolder, made_from: dict[str, object], steps: int) -> str:
    """Return a report of what a job with about so many steps would do; nothing is written, no Ray is needed.

    Raises what the job itself would raise about its place.
    """
    storage.check_creatable(job.out)
    place = describe_place(job, tokens, made_from)
    architecture = resolve(job.model, tokens.vocab_size, tokens.max_length)
    epoch = survey_epoch(tokens, job.batches)
    parts = [
        format_parameters(architecture),
        format_epoch(job, tokens, epoch, steps),
        format_memory(job, architecture, epoch),
        format_writing(job, architecture, tokens),
        f"{place}; nothing was written",
    ]
    return "\n\n".join(parts)


def describe_place(job: TrainJob, tokens: TokenFolder, made_from: dict[str, object]) -> str:
    """Return whether a job would begin, go on, or find its work done; raises InputError where it would be refused."""
    ledger, found = find_ledger(job.out, made_from, job.overwrite, job.allow_change)
    out = ledger.folder
    if found is Found.OUTDATED:
        return f"what is in {out} would be removed, and training would begin"
    if found is Found.THE_SAME and ledger.is_finished:
        if lacks_average(job, ledger.manifest):
            return f"{out} is finished: only {AVERAGE}/ would be written"
        return f"{out} is finished and unchanged: nothing would be done"
    if found is Found.CHANGED:
        check_model(job, tokens)
    step = newest_progress(out).step
    return f"training would go on from step {step:,} in {out}" if step else f"training would begin in {out}"


def survey_epoch(tokens: TokenFolder, config: BatchesConfig) -> Epoch:
    """Return what the first epoch holds, planned pool by pool from the length columns."""
    epoch = Epoch()
    for pool, source, target in first_epoch(tokens, config):
        epoch.pairs += len(source)
        steps = plan_pool(source, target, config, 0, pool.index)
        for rows in map(np.concatenate, steps):
            epoch.seen += len(rows)
            epoch.target_tokens += int(target[rows].sum())
            epoch.step_tokens.append(int(source[rows].sum() + target[rows].sum()))
        shapes = shapes_of(source, target, steps, config)
        epoch.shapes.update(shapes)
        epoch.padded += sum(shape.tokens for shape in shapes)
    return epoch


def format_parameters(architecture: Architecture) -> str:
    """Return the weights by part."""
    counts = count_parameters(architecture)
    total = sum(counts.values())
    rows: list[list[object]] = [[part, f"{count:,}", f"{count / total:.1%}"] for part, count in counts.items()]
    return format_table(["part", "parameters", "share"], [*rows, ["all", f"{total:,}", ""]])


def format_epoch(job: TrainJob, tokens: TokenFolder, epoch: Epoch, steps: int) -> str:
    """Return how many steps there are, and what is in one."""
    per_step = np.array(epoch.step_tokens)
    config = job.training
    ends = [f"{config.epochs} epochs"]
    ends += [f"max_steps {config.max_steps:,}"] if config.max_steps else []
    ends += [f"token_budget {config.token_budget:,}"] if config.token_budget else []
    rows: list[list[object]] = [
        ["pairs an epoch", f"{epoch.pairs:,}, and {epoch.seen - epoch.pairs:,} of them again, to fill the lanes"],
        ["steps an epoch", f"{len(per_step):,}"],
        ["steps in all, about", f"{steps:,} (the first end of {', '.join(ends)})"],
        ["target tokens an epoch", f"{epoch.target_tokens:,}"],
        ["tokens a step, both sides", f"{per_step.mean():,.0f} (mean), {per_step.max():,} (most)"],
        ["padding", f"{epoch.padding:.1%}"],
        ["shapes of micro-batches", f"{len(epoch.shapes):,}"],
    ]
    if valid := sum(tokens.pair_counts("valid")):
        decoded = min(valid, config.valid_rows)
        how = f", decodes {decoded:,} of them (beam {config.valid_beam_size})" if decoded else ""
        rows.append(["validation", f"every {config.validate_every:,} steps: the loss of {valid:,} pairs{how}"])
    if job.batches.bpe_dropout:
        rows.append(["", "before BPE dropout, which makes pairs longer"])
    return format_table(["plan", ""], rows)


def format_memory(job: TrainJob, architecture: Architecture, epoch: Epoch) -> str:
    """Return how many workers with how many lanes there may be, and the memory of each."""
    config, lanes = job.training, job.batches.lanes
    # Where there is room for the fewest alone, as many as divide the lanes train.
    fewest = usable_workers(config.min_workers, lanes)
    counts = [n for n in worker_counts(lanes) if fewest <= n <= config.max_workers]
    on_gpu = config.use_gpu == "yes" or (config.use_gpu == "auto" and torch.cuda.is_available())
    dtype = (
        torch.bfloat16 if on_gpu and config.precision == "auto" else choose_dtype(config.precision, torch.device("cpu"))
    )
    workers = counts[-1] if config.parallel == "ddp" else counts[0]  # of shards, the fewest hold the largest
    setting = MemorySetting(config, dtype.itemsize, on_gpu, workers, lanes // workers)
    estimates = [(shape, estimate_memory(architecture, shape, setting)) for shape in epoch.shapes]
    shape, estimate = max(estimates, key=lambda pair: sum(pair[1].values()))
    if not on_gpu:
        estimate["Python and libraries, as here"] = peak_memory()
    rows: list[list[object]] = [[name, f"{count / 1e6:,.0f}"] for name, count in estimate.items()]
    shared = " or ".join(f"{n} with {lanes // n} lane(s) each" for n in counts)
    head = (
        f"workers: {shared}; {config.parallel}, {name_of(dtype)} on {'GPUs' if on_gpu else 'CPUs'}"
        f"; the largest micro-batch has {shape.rows} rows of {shape.source} + {shape.target} tokens"
    )
    table = format_table(["memory of a worker, about", "MB"], [*rows, ["all", f"{sum(estimate.values()) / 1e6:,.0f}"]])
    return f"{head}\n{table}"


def format_writing(job: TrainJob, architecture: Architecture, tokens: TokenFolder) -> str:
    """Return what would be written where, and how large it is."""
    config, out = job.training, storage.absolute(job.out)
    model = FP32 * sum(count_parameters(architecture).values())
    kept = config.keep_checkpoints + config.keep_best_checkpoints
    checkpoint = model * (4 if config.ema_decay else 3)
    valid = sum(tokens.pair_counts("valid"))
    chosen = f"of the best validation by {config.best_metric}" if valid else "the newest: no validation data"
    rows: list[list[object]] = [
        ["best/", megabytes(model), chosen],
        ["last/", megabytes(model), "after the last step"],
        ["checkpoints/", megabytes((kept + 1) * checkpoint), f"{kept} and a new one, {checkpoint / 1e6:,.0f} MB each, "
         f"every {config.checkpoint_every:,} steps"],
        [LOG, "", f"a line every {config.log_every:,} steps, and at validations"],
        [CURVES, "", "drawn at validations"],
        [f"{FOLDER}/", "", "for `tensorboard --logdir`"],
    ]  # fmt: skip
    if config.average_checkpoints:
        rows.insert(2, [f"{AVERAGE}/", megabytes(model), f"the mean of {config.average_checkpoints} checkpoints"])
    return f"written to {out}:\n{format_table(['what', 'MB', ''], rows)}"


def megabytes(count: float) -> str:
    """Return bytes as megabytes, rounded up."""
    return f"{math.ceil(count / 1e6):,}"
