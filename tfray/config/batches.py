"""Settings of the data order."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfray.config.rules import check_types, require, text_keys

MOST_LANES = 65_536
"""Every step is a list of them, and the numbers of workers that divide them are counted."""


@dataclass(frozen=True, kw_only=True)
class BatchesConfig:
    """The planned order of the data: pools -> steps x lanes of micro-batches."""

    max_tokens: int = 4096
    """Padded tokens in one micro-batch at most: rows x longest side."""
    lanes: int = 2
    """Micro-batches in one step, whoever runs them; the number of workers must divide it."""
    pool_examples: int = 262_144
    """Examples shuffled and bucketed together; bounds the feed's memory."""
    seed: int = 1
    """Seed of the data order."""
    temperature: float = 1.0
    """Mixing of several corpora: 1 takes each as large as it is, larger values even the sizes out
    (Arivazhagan et al. 2019: a corpus of n pairs counts as n^(1/temperature)); the corpora's weights
    come on top."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a corpus by its name, in place of the one that it was tokenized with."""
    packing: bool = False
    """Lay several pairs into one row, each seeing only itself: less padding and rows of one width, for GPUs. Rows
    are as wide as the longest pair of their pool, or up to twice as wide; max_tokens is then rows x width."""
    bpe_dropout: float = 0.0
    """Probability with which a merge is skipped when training texts are segmented (Provilkov et al. 2020),
    anew in each epoch; 0 to below 1. Needs a BPE tokenizer."""

    def __post_init__(self) -> None:
        check_types("batches", self)
        # As the command line and YAML give them: 2 and 2.0 are one data order, and have one fingerprint.
        object.__setattr__(self, "weights", {name: float(w) for name, w in text_keys(self.weights).items()})
        for name in ("temperature", "bpe_dropout"):
            object.__setattr__(self, name, float(getattr(self, name)))
        require(self.temperature > 0, "batches.temperature", self.temperature, "must be positive")
        require(0 <= self.bpe_dropout < 1, "batches.bpe_dropout", self.bpe_dropout, "must be at least 0 and below 1")
        for name, weight in self.weights.items():
            require(weight > 0, f"batches.weights.{name}", weight, "must be positive")
        for name in ("max_tokens", "lanes", "pool_examples"):
            require(getattr(self, name) > 0, f"batches.{name}", getattr(self, name), "must be positive")
        require(self.lanes <= MOST_LANES, "batches.lanes", self.lanes, f"must be at most {MOST_LANES:,}")
        require(self.seed >= 0, "batches.seed", self.seed, "must not be negative")


def worker_counts(lanes: int) -> list[int]:
    """Return the numbers of workers that may share out so many lanes: their divisors, the smallest first."""
    return [count for count in range(1, lanes + 1) if lanes % count == 0]


def usable_workers(workers: int, lanes: int) -> int:
    """Return the largest divisor of the lanes that is at most the number of workers."""
    return max(count for count in worker_counts(lanes) if count <= workers)
