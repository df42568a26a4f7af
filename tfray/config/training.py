"""Settings of the training and its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tfray.config.batches import BatchesConfig, worker_counts
from tfray.config.model import ModelConfig
from tfray.config.rules import FREE, check_types, free, require
from tfray.errors import InputError

MOST_EPOCHS = 100_000
"""Each is counted before the first step."""


@dataclass(frozen=True, kw_only=True)
class WorkerRange:
    """Elastic training: between min and max workers, as the cluster has room."""

    min: int
    """Fewest training processes."""
    max: int
    """Most training processes."""

    def __post_init__(self) -> None:
        require(1 <= self.min <= self.max, "training.workers", vars(self), "must have 1 <= min <= max")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimizer, the loop and its workers."""

    epochs: int = 20
    """Passes over the data."""
    max_steps: int | None = None
    """Optimizer steps after which training ends at the latest. Default: 'epochs' alone decides."""
    token_budget: int | None = None
    """Target tokens after which training ends at the latest. Default: 'epochs' alone decides."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    schedule: Literal["inverse_sqrt", "cosine", "linear", "wsd"] = "inverse_sqrt"
    """Decay after the warm-up; cosine and linear are at zero after the last step; wsd (warm-up, stable, decay) stays
    at the peak and then goes down to zero in a line over the last decay_share of the steps."""
    decay_share: float = 0.2
    """Schedule wsd: share of the steps in which the rate decays."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and the embedding have none."""
    adam_betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    label_smoothing: float = 0.1
    """Probability mass spread over the vocabulary, 0 to below 1."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax' denominator in the loss (Chowdhery et al. 2022, section 5), which
    keeps logits from drifting; 0 switches it off, usual is 1e-4."""
    r_drop: float = 0.0
    """Weight of R-Drop (Liang et al. 2021): every micro-batch passes twice with other dropout, and the two
    predictions are pulled together; 0 switches it off, usual is 1 to 5. Doubles the work and the activations."""
    gradient_clip: float = 1.0
    """Largest norm of a step's gradient; 0 switches clipping off."""
    spike_factor: float = 10.0
    """A step is a spike, and is skipped and counted, where its gradient norm is more than this many times the median
    of the last 200 steps (taken as gradient_clip at least), or its loss is above their median by more than this many
    times their median distance from it (taken as 0.05 nats a token at least). Skipped steps do not enter the 200;
    fewer than 50 judge nothing; an 11th spike in a row is the new level: it is taken, and the 200 begin anew. 0
    switches it off."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is
    validated and written as a model folder; 0 switches it off."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the matrix products; weights stay fp32. 'auto': bf16 where the device is fast
    in it (GPUs since Ampere, CPUs with AMX or AVX512-BF16)."""
    parallel: Literal["ddp", "fsdp"] = free("ddp")
    """What workers share out: ddp, the examples alone; fsdp, also weights, gradients and moments (FSDP2), for models
    that one device cannot hold."""
    activation_checkpointing: bool = free(False)
    """Compute activations again in the backward pass in place of keeping them: less memory, a third more work."""
    compile: Literal["auto", "yes", "no"] = free("auto")
    """torch.compile of the model. 'auto': on a GPU, if that works there."""
    workers: int | WorkerRange = field(default=1, metadata=FREE)
    """Training processes; must divide batches.lanes. {min: M, max: N}: elastic, as many as there is room for,
    rounded down to a divisor of the lanes."""
    use_gpu: Literal["auto", "yes", "no"] = free("auto")
    """One GPU a worker. 'auto': where the cluster has enough GPUs."""
    cpus_per_worker: float | None = free(None)
    """CPU cores that Ray reserves for a worker, which computes with as many threads. Default: Ray reserves what leaves
    a core for the data tasks, and the workers of a machine share its cores."""
    max_failures: int = free(3)
    """Losses of workers or nodes in a row, without a new checkpoint in between, that training survives."""
    validate_every: int = 500
    """Steps between validations (the last step always validates)."""
    valid_rows: int = 500
    """Validation pairs that are decoded for BLEU and chrF, or accuracy; 0: none, the loss alone."""
    valid_beam_size: int = 1
    """Hypotheses kept when validation decodes; 1 is greedy search."""
    valid_on: Literal["auto", "worker", "actor"] = free("auto")
    """Where validation decodes. worker: on the training workers, each a share; actor: on an actor of its own beside
    the training, whose answer comes some steps later and counts for the step of the weights (if it is still busy when
    the next are there, the newest are decoded next). 'auto': on an actor where the cluster has room, a GPU or, for
    training on CPUs, a machine without a worker."""
    best_metric: Literal["loss", "bleu", "chrf", "accuracy"] = "loss"
    """What the best model and 'patience' go by."""
    patience: int = 0
    """Validations without a better one after which training ends; 0: never."""
    checkpoint_every: int = free(500)
    """Steps between checkpoints."""
    keep_checkpoints: int = free(2)
    """Newest checkpoints that are kept."""
    keep_best_checkpoints: int = free(0)
    """Checkpoints with the best validations that are kept too; one is then written at each validation."""
    average_checkpoints: int = free(0)
    """Write the mean of the weights of the last so many checkpoints (of the best ones, with keep_best_checkpoints) as
    the model folder average/; 0 switches it off."""
    log_every: int = free(50)
    """Steps between log lines."""
    seed: int = 1
    """Seed of weights and dropout."""

    def __post_init__(self) -> None:
        check_types("training", self)
        for name in (
            "epochs",
            "learning_rate",
            "valid_beam_size",
            "validate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "must be positive")
        for name in (
            "warmup_steps",
            "weight_decay",
            "gradient_clip",
            "max_failures",
            "patience",
            "seed",
            "z_loss",
            "r_drop",
            "spike_factor",
            "valid_rows",
            "keep_best_checkpoints",
            "average_checkpoints",
        ):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "must not be negative")
        for name in ("label_smoothing", "ema_decay"):
            require(
                0 <= getattr(self, name) < 1,
                f"training.{name}",
                getattr(self, name),
                "must be at least 0 and below 1",
            )
        for beta in self.adam_betas:
            require(0 <= beta < 1, "training.adam_betas", self.adam_betas, "must be at least 0 and below 1, each")
        for name in ("max_steps", "token_budget", "cpus_per_worker"):
            value = getattr(self, name)
            require(value is None or value > 0, f"training.{name}", value, "must be positive")
        require(
            self.epochs <= MOST_EPOCHS or bool(self.max_steps or self.token_budget),
            "training.epochs",
            self.epochs,
            f"are more than {MOST_EPOCHS:,}, which take minutes to plan before the first step; use fewer, or end "
            "training by max_steps or token_budget",
        )
        require(self.min_workers > 0, "training.workers", self.workers, "must be positive")
        require(0 < self.decay_share <= 1, "training.decay_share", self.decay_share, "must be above 0 and at most 1")
        limit = "keep_best_checkpoints" if self.keep_best_checkpoints else "keep_checkpoints"
        kept = getattr(self, limit)
        require(
            self.average_checkpoints <= kept,
            "training.average_checkpoints",
            self.average_checkpoints,
            f"must be at most training.{limit} ({kept}), whose checkpoints are averaged; raise that",
        )

    @property
    def min_workers(self) -> int:
        """Fewest training processes."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """Most training processes."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


def check_r_drop(model: ModelConfig, training: TrainingConfig) -> None:
    """Refuse R-Drop where both passes would be the same."""
    require(
        not training.r_drop or model.dropout > 0,
        "training.r_drop",
        training.r_drop,
        "compares two passes of other dropout, and model.dropout is 0; raise that, or leave r_drop 0",
    )


def check_lanes(batches: BatchesConfig, training: TrainingConfig) -> None:
    """Refuse a number of workers that does not divide the lanes, naming those that do."""
    divisors = worker_counts(batches.lanes)
    if isinstance(training.workers, WorkerRange):
        require(
            any(training.min_workers <= n <= training.max_workers for n in divisors),
            "training.workers",
            vars(training.workers),
            f"holds no divisor of batches.lanes={batches.lanes}; those are {', '.join(map(str, divisors))}",
        )
    elif batches.lanes % training.workers:
        raise InputError(
            f"batches.lanes={batches.lanes} must be divisible by training.workers={training.workers}; "
            f"use {' or '.join(map(str, divisors))} workers, or {training.workers} or "
            f"{2 * training.workers} lanes"
        )
