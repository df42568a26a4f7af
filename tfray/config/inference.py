"""Settings of the search and of the prediction job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tfray.config.rules import FREE, Paths, check_types, free, require, require_paths


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The search for a target."""

    search: Literal["beam", "sample", "mbr"] = "beam"
    """beam: the most probable target (greedy with a beam of 1). sample: targets drawn by their probability.
    mbr: of drawn targets the one that is most like the others (minimum Bayes risk, with chrF)."""
    beam_size: int = 4
    """Hypotheses kept for each row; 1 is greedy search."""
    n_best: int = 1
    """Targets returned for each row, the best first; at most beam_size, or samples (for labels, too, which need no
    search). Equal samples are returned once; sample ranks them as a beam does, mbr by likeness."""
    length_penalty: float = 1.0
    """Exponent a of the length by which a finished hypothesis' log-probability is divided:
    0 prefers short targets, 1 is the mean per token."""
    length_normalization: Literal["average", "gnmt"] = "average"
    """What length_penalty is the exponent of. average: the length; gnmt: (5 + length) / 6 (Wu et al. 2016)."""
    coverage_penalty: float = 0.0
    """Weight of the sum of log(min(attention, 1)) over source tokens, added to a hypothesis' rank
    (Wu et al. 2016); the attention is that of the last decoder layer. 0 switches it off."""
    early_stopping: Literal["exact", "beam"] = "exact"
    """When a row's beam search ends. exact: once nothing open can become better than what has ended (the result
    is that of searching to the longest length); beam: as soon as beam_size hypotheses have ended."""
    samples: int = 1
    """Targets drawn for each row, with search: sample or mbr."""
    temperature: float = 1.0
    """Sampling: log-probabilities are divided by it; below 1 the probable become more probable."""
    top_k: int = 0
    """Sampling: draw among the k most probable tokens; 0 switches it off."""
    top_p: float = 1.0
    """Sampling: draw among the fewest tokens that hold this share of the probability; 1 switches it off."""
    min_p: float = 0.0
    """Sampling: draw among tokens whose probability is at least this share of the most probable token's; 0 switches
    it off."""
    seed: int = 1
    """Seed of sampling; a row's samples follow from it, from its file's path and from its number in the file alone."""
    min_length: int = 0
    """Shortest target in tokens, its end not counted."""
    min_length_ratio: float = 0.0
    """Shortest target as this times the source's tokens."""
    max_length: int | None = None
    """Longest target in tokens, its end counted. Default: the model's longest."""
    max_length_ratio: float = 2.0
    """Longest target in tokens is this times the source's, plus max_length_extra."""
    max_length_extra: int = 20
    """See max_length_ratio."""
    long_sources: Literal["refuse", "truncate", "split"] = "refuse"
    """What becomes of sources longer than the model's longest. refuse: an error in their row; truncate: cut at the
    end, and marked (task score refuses them); split: searched in pieces whose targets are joined (task generate;
    the other tasks refuse them)."""
    no_repeat_ngram: int = 0
    """Forbid n-grams of this size to occur twice in a target; 0 switches it off."""
    repetition_penalty: float = 1.0
    """Makes tokens that have occurred in the target less probable (Keskar et al. 2019); 1 switches it off."""
    suppress_tokens: list[int] = field(default_factory=list)
    """Ids that never occur in a target."""
    batch_rows: int = free(0)
    """Rows decoded together at most; 0: 128, on a GPU 512. Does not change any result."""
    max_tokens: int = free(0)
    """Padded tokens decoded together at most, of sources and of all hypotheses at their longest; 0: as
    memory allows. Does not change any result."""
    memory_gb: float = free(0.0)
    """Memory for rows that are decoded together, in gigabytes; 0: half of what is free, shared by the models of a
    machine."""
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"
    """Arithmetic of the model, as in training.precision; int8: 8-bit weights and products, on a CPU, where
    they cost no more quality than most_loss."""
    most_loss: float = free(0.5)
    """Precision int8: what it may lose against fp32, in BLEU, or for labels in percent of right ones; measured
    before the work begins."""

    @property
    def is_beam_search(self) -> bool:
        """True where hypotheses of a row compete; greedy search and samples have none beside them."""
        return self.search == "beam" and self.beam_size > 1

    @property
    def width(self) -> int:
        """Hypotheses of a row at a time."""
        return self.beam_size if self.search == "beam" else self.samples

    def __post_init__(self) -> None:
        check_types("generation", self)
        require(
            self.beam_size >= 1,
            "generation.beam_size",
            self.beam_size,
            "must be at least 1 (1 is greedy search)",
        )
        for name in (
            *("length_penalty", "coverage_penalty", "max_length_ratio", "min_length", "min_length_ratio", "top_k"),
            *("no_repeat_ngram", "batch_rows", "max_tokens", "memory_gb", "seed", "most_loss"),
        ):
            require(getattr(self, name) >= 0, f"generation.{name}", getattr(self, name), "must not be negative")
        for name in ("max_length_extra", "samples", "n_best"):
            require(getattr(self, name) >= 1, f"generation.{name}", getattr(self, name), "must be at least 1")
        require(
            self.length_penalty <= 20,
            "generation.length_penalty",
            self.length_penalty,
            "must be at most 20: beyond, all ranks of long targets come to be 0",
        )
        require(self.temperature > 0, "generation.temperature", self.temperature, "must be positive")
        require(
            0.001 <= self.repetition_penalty <= 1000,
            "generation.repetition_penalty",
            self.repetition_penalty,
            "must be between 0.001 and 1000: beyond, logits are no numbers any more",
        )
        require(self.seed < 1 << 63, "generation.seed", self.seed, "must be below 2^63")
        require(0 < self.top_p <= 1, "generation.top_p", self.top_p, "must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, "generation.min_p", self.min_p, "must be between 0 and 1")
        self.check_relations()

    def check_relations(self) -> None:
        """Refuse settings that contradict each other."""
        require(
            self.max_length is None or self.max_length > self.min_length,
            "generation.max_length",
            self.max_length,
            f"must be above min_length ({self.min_length}): a target ends with a token more",
        )
        require(
            self.min_length_ratio == 0 or self.min_length_ratio <= self.max_length_ratio,
            "generation.min_length_ratio",
            self.min_length_ratio,
            f"must be at most max_length_ratio ({self.max_length_ratio})",
        )
        require(
            2 not in self.suppress_tokens and all(token >= 0 for token in self.suppress_tokens),
            "generation.suppress_tokens",
            self.suppress_tokens,
            "must be ids, and not 2, which ends a target",
        )
        require(
            self.coverage_penalty == 0 or self.is_beam_search,
            "generation.coverage_penalty",
            self.coverage_penalty,
            f"ranks the hypotheses of a beam, and there is none with search: {self.search}, beam_size: "
            f"{self.beam_size}; leave it 0",
        )
        if self.search == "beam":
            require(
                self.n_best <= self.beam_size,
                "generation.n_best",
                self.n_best,
                f"must be at most beam_size ({self.beam_size}); raise beam_size, or draw with search: sample",
            )
            chances = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "samples": 1}
            for name, off in chances.items():
                require(
                    getattr(self, name) == off,
                    f"generation.{name}",
                    getattr(self, name),
                    "is for search: sample or mbr, and search is beam; set one of them",
                )
        else:
            require(
                self.n_best <= self.samples,
                "generation.n_best",
                self.n_best,
                f"must be at most samples ({self.samples})",
            )
        require(
            self.search != "mbr" or self.samples >= 2,
            "generation.samples",
            self.samples,
            "must be at least 2 with search: mbr, which compares them",
        )

    def check_device(self, is_cpu: bool) -> None:
        """Refuse a precision that a device does not have."""
        require(
            is_cpu or self.precision != "int8",
            "generation.precision",
            self.precision,
            "is for CPUs; use bf16 on a GPU, or --inference.use_gpu no",
        )

    def check_vocabulary(self, size: int) -> None:
        """Refuse ids that a vocabulary of a size does not have."""
        require(
            max(self.suppress_tokens, default=0) < size,
            "generation.suppress_tokens",
            self.suppress_tokens,
            f"must be ids of the model's vocabulary, which ends at {size - 1}",
        )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """The prediction job: its columns, its errors, its workers."""

    prefix: str = ""
    """Put before the names of all added columns; needed where the input has columns of these names."""
    provenance: bool = False
    """Add the columns file and row: where each row came from."""
    token_scores: bool = False
    """Task score: add the log-probability of every target token."""
    embedding_type: Literal["float32", "float16"] = "float32"
    """Task embed: number type of the vectors."""
    max_characters: int = 100_000
    """Longest source text in characters; a longer one gets an error in its row."""
    sentences: Literal["long", "all", "off"] = "long"
    """Task generate: which sources are split into sentences, each with a target of its own, joined again in
    order. long: those longer than the model takes; all: every one; off: none. What is too long after that is up
    to generation.long_sources."""
    language: str | None = None
    """Language of the source (en, de, fr, es, zh ...), for abbreviations after which no sentence ends.
    Default: the abbreviations of all of them."""
    schemas: Literal["union", "same"] = "union"
    """Input files with different columns. union: the output has all of them; same: the job is refused."""
    fail_fast: bool = free(False)
    """End at the first row with an error, with exit code 3."""
    max_error_rate: float = free(1.0)
    """Share of rows with errors beyond which the job ends, with exit code 3."""
    unit_rows: int | None = free(None)
    """Most rows of a unit, which is worked on and committed as a whole. Default: what keeps a model busy for about a
    minute, by its size, the rows' bytes, and whether this machine has a GPU or use_gpu is 'yes'; 512 to 65,536."""
    actors: int | None = free(None)
    """Model replicas. Default: one for each GPU of the cluster, or else one for each group of CPU cores."""
    max_actors: int | None = free(None)
    """Model replicas at most, to which the job may grow from 'actors'. Default: 'actors'; with cluster.autoscaling as
    many as there are units."""
    quality_data: Paths = field(default_factory=list, metadata=FREE)
    """Precision int8: files with source and target on which its quality is measured. Default: rows of the input,
    where it has targets."""
    cpus_per_actor: int = free(1)
    """CPU cores of a replica without a GPU."""
    use_gpu: Literal["auto", "yes", "no"] = free("auto")
    """One GPU a replica. 'auto': where the cluster has GPUs."""

    def __post_init__(self) -> None:
        check_types("inference", self)
        require_paths(self, "quality_data", group="inference.")
        for name in ("unit_rows", "actors", "max_actors"):
            value = getattr(self, name)
            require(value is None or value > 0, f"inference.{name}", value, "must be positive")
        for name in ("max_characters", "cpus_per_actor"):
            require(getattr(self, name) > 0, f"inference.{name}", getattr(self, name), "must be positive")
        require(
            0 <= self.max_error_rate <= 1, "inference.max_error_rate", self.max_error_rate, "must be between 0 and 1"
        )
        require(
            not (self.actors and self.max_actors) or self.max_actors >= self.actors,
            "inference.max_actors",
            self.max_actors,
            f"must be at least inference.actors ({self.actors})",
        )
