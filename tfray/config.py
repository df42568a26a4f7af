"""Every setting of tfray: one frozen dataclass a stage, one job dataclass a command.

The text under a field is its help on the command line; each setting is said once, here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tfray.errors import InputError

Paths = str | list[str]
SPLITS = ("train", "valid", "test")


def as_list(paths: Paths) -> list[str]:
    """Return one path or many as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise InputError with name, value and rule unless the rule holds."""
    if not holds:
        raise InputError(f"{name}={value!r} {rule}")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where Ray runs."""

    address: str | None = None
    """Ray cluster to use: 'auto', or HOST:PORT. Default: a local Ray, started quietly and stopped
    again (inside a Ray job: the job's own cluster)."""
    num_cpus: int | None = None
    """CPU cores of the local Ray. Default: all cores of this machine."""
    dashboard: bool = False
    """Start the dashboard of the local Ray on localhost."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: do not refuse what its present nodes cannot hold."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How text is normalized; stored in the model folder, so that prediction reads text as training did."""

    unicode: Literal["nfc", "nfkc", "off"] = "nfc"
    """Unicode form: canonical composition, with compatibility characters (full-width, ligatures) replaced, or as is."""
    control_characters: bool = True
    """Delete control characters (Unicode category Cc) other than white space, and byte-order marks."""
    whitespace: bool = True
    """Make every run of white space one space, and none at either end."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Which rows of the corpus are used; every dropped row is counted with its reason."""

    min_characters: int = 1
    """Shortest text of either side, in characters."""
    max_characters: int = 5000
    """Longest text of either side, in characters."""
    max_length_ratio: float = 0.0
    """Largest ratio of the longer side to the shorter, in tokens; 0 switches it off. Not for labels."""
    drop_equal: bool = False
    """Drop rows whose source and target are the same text."""
    source_script: str | None = None
    """Script of the source, by its Unicode name: latin, cyrillic, han, arabic ... Rows in which less than
    min_script_share of the letters belong to it are dropped. Default: any."""
    target_script: str | None = None
    """Script of the target, as source_script."""
    min_script_share: float = 0.5
    """Share of a text's letters that must belong to its script."""
    duplicates: Literal["off", "pair", "source", "target", "either"] = "off"
    """Drop rows whose pair, source, target, or either side occurred before, in the order of the inputs.
    Compared after normalization by 128-bit hashes over all training files."""
    near_duplicates: float = 0.0
    """Drop rows whose source is about this similar (Jaccard similarity of 5-character shingles, by
    MinHash) to an earlier one; 0 switches it off. Needs the extra 'dedup'."""
    keep_rejected: bool = True
    """Write dropped rows with their reason and place to rejected/."""
    max_error_share: float = 0.01
    """Share of rows lost by errors (damaged files and rows; not by the choices above) beyond which the
    job ends with exit code 3."""

    def __post_init__(self) -> None:
        require(self.min_characters >= 1, "corpus.clean.min_characters", self.min_characters, "must be at least 1")
        require(
            self.max_characters >= self.min_characters,
            "corpus.clean.max_characters",
            self.max_characters,
            f"must be at least min_characters ({self.min_characters})",
        )
        require(
            self.max_length_ratio == 0 or self.max_length_ratio >= 1,
            "corpus.clean.max_length_ratio",
            self.max_length_ratio,
            "must be 0 (off) or at least 1",
        )
        for name in ("min_script_share", "max_error_share"):
            require(
                0 <= getattr(self, name) <= 1,
                f"corpus.clean.{name}",
                getattr(self, name),
                "must be between 0 and 1",
            )
        require(
            0 <= self.near_duplicates < 1,
            "corpus.clean.near_duplicates",
            self.near_duplicates,
            "must be at least 0 and below 1",
        )


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One of several training corpora."""

    name: str
    """Name in counts, provenance and weights."""
    files: Paths
    """Files, as in corpus.train."""
    target_files: Paths = field(default_factory=list)
    """Target side of parallel text."""
    source_column: str | None = None
    """Column of the source text. Default: as corpus.source_column."""
    target_column: str | None = None
    """Column of the target text or label. Default: as corpus.target_column."""
    weight: float = 1.0
    """How often each of its pairs is seen in one training epoch: 2 is twice, 0.5 every second time."""

    def __post_init__(self) -> None:
        fits = self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        require(fits, "corpus.parts.name", self.name, "must be letters, digits, '-', '_' and '.'")
        require(
            self.name not in (*SPLITS, "corpus"), "corpus.parts.name", self.name, "is taken by tfray; choose another"
        )
        require(self.weight > 0, "corpus.parts.weight", self.weight, "must be positive; leave the corpus out instead")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Raw text: what to read and what to make of it."""

    train: Paths = field(default_factory=list)
    """Training files: a path, glob, folder or URL, or a list of them. Parquet, JSONL, CSV, TSV, or the
    source side of parallel text; text formats also as .gz, .zst or .bz2."""
    train_target: Paths = field(default_factory=list)
    """Target side of parallel text in 'train': one file for each, in the same order."""
    parts: list[PartConfig] = field(default_factory=list)
    """Several training corpora, each with a name, files, columns and weight (best written in a YAML file);
    beside 'train' or in place of it."""
    valid: Paths = field(default_factory=list)
    """Validation files, as in 'train'."""
    valid_target: Paths = field(default_factory=list)
    """Target side of parallel text in 'valid'."""
    test: Paths = field(default_factory=list)
    """Test files that should become token shards too (`tfray predict` reads text and needs none)."""
    valid_share: float = 0.0
    """Share of the training rows that become validation data, by the hash of their source text: the same
    text goes to the same side in any order, file layout or number of workers."""
    test_share: float = 0.0
    """Share of the training rows held out for tests, as valid_share; they are also written as text, to
    test_text/."""
    held_out: Literal["either", "source", "off"] = "either"
    """Training rows that are dropped to keep validation and test texts out of training: those that share
    a text with them on either side (labels aside), or their source, or none."""
    seed: int = 1
    """Seed of the splits and of the tokenizer's sample."""
    task: Literal["auto", "translation", "classification"] = "auto"
    """What the target is: text, or one label. 'auto': classification when the files have the
    columns text and label in place of the source and target columns."""
    source_column: str | None = None
    """Column (or JSON field) of the source text. Default: source, or text if there is no source."""
    target_column: str | None = None
    """Column (or JSON field) of the target text or label. Default: target, or label."""
    label_names: dict[str, str] = field(default_factory=dict)
    """Classification: value in the label column -> name in predictions. Values not listed are
    refused row by row. Default: every value that occurs names itself."""
    text: TextConfig = field(default_factory=TextConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)

    def __post_init__(self) -> None:
        for name in ("valid_share", "test_share"):
            value = getattr(self, name)
            require(0 <= value < 1, f"corpus.{name}", value, "must be at least 0 and below 1")
        both = self.valid_share + self.test_share
        require(both < 1, "corpus.valid_share + corpus.test_share", both, "must be below 1")
        for name in ("valid", "test"):
            require(
                not (getattr(self, f"{name}_share") and as_list(getattr(self, name))),
                f"corpus.{name}_share",
                getattr(self, f"{name}_share"),
                f"splits data off, and corpus.{name} names files of it; use one of them",
            )
        require(self.seed >= 0, "corpus.seed", self.seed, "must not be negative")
        names = [part.name for part in self.parts]
        require(len(set(names)) == len(names), "corpus.parts", names, "has a name twice; give each corpus its own")


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """The tokenizer and the token shards."""

    tokenizer: str | None = None
    """Use this tokenizer in place of training one: a tokenizer.json, a SentencePiece .model, or a folder
    that holds one of them."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """Byte-level subword algorithm, shared by both sides. The same texts always give the same BPE
    tokenizer; the library's training of unigram ones differs a little from run to run."""
    vocab_size: int = 8000
    """Vocabulary entries at most, special and label tokens included; at least 300."""
    sample_rows: int = 1_000_000
    """Rows that the tokenizer is trained on at most: those whose texts have the smallest seeded hashes, so
    that the same corpus gives the same tokenizer in any order or file layout."""
    max_length: int = 256
    """Longest source or target in tokens; longer rows are dropped and counted."""
    shard_tokens: int = 4_000_000
    """Tokens of both sides in one shard at most, about."""

    def __post_init__(self) -> None:
        require(
            self.vocab_size >= 300,
            "tokens.vocab_size",
            self.vocab_size,
            "must be at least 300 (256 bytes and the special tokens)",
        )
        require(self.sample_rows > 0, "tokens.sample_rows", self.sample_rows, "must be positive")
        require(self.max_length >= 2, "tokens.max_length", self.max_length, "must be at least 2")
        require(self.shard_tokens >= 1000, "tokens.shard_tokens", self.shard_tokens, "must be at least 1000")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Transformer: a preset, and what departs from it."""

    preset: Literal["tiny", "small", "base", "big"] = "small"
    """Sizes as (d_model, heads, d_ff, layers a side): tiny (128, 4, 512, 2), small (256, 4, 1024, 3),
    base (512, 8, 2048, 6), big (1024, 16, 4096, 6)."""
    d_model: int | None = None
    """Width of the hidden states. Default: the preset's."""
    num_heads: int | None = None
    """Attention heads; must divide d_model. Default: the preset's."""
    d_ff: int | None = None
    """Inner width of the feed-forward layers. Default: the preset's."""
    encoder_layers: int | None = None
    """Layers of the encoder. Default: the preset's."""
    decoder_layers: int | None = None
    """Layers of the decoder. Default: the preset's."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Non-linearity of the feed-forward layers."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalize before each sub-layer (stable) or after its residual (as in the 2017 paper)."""
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"
    """Positions added to the embedding, or rotated into queries and keys of self-attention."""
    dropout: float = 0.1
    """Share of activations dropped while training, 0 to below 1."""

    def __post_init__(self) -> None:
        for name in ("d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name}", value, "must be positive")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and below 1")


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
    bpe_dropout: float = 0.0
    """Probability with which a merge is skipped when training texts are segmented (Provilkov et al. 2020),
    anew in each epoch; 0 to below 1. Needs a BPE tokenizer."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "batches.temperature", self.temperature, "must be positive")
        require(0 <= self.bpe_dropout < 1, "batches.bpe_dropout", self.bpe_dropout, "must be at least 0 and below 1")
        for name, weight in self.weights.items():
            require(weight > 0, f"batches.weights.{name}", weight, "must be positive")
        for name in ("max_tokens", "lanes", "pool_examples"):
            require(getattr(self, name) > 0, f"batches.{name}", getattr(self, name), "must be positive")
        require(self.seed >= 0, "batches.seed", self.seed, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimiser, the loop and its workers."""

    epochs: int = 20
    """Passes over the data."""
    max_steps: int | None = None
    """Optimiser steps after which training ends at the latest. Default: 'epochs' alone decides."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    """Decay after the warm-up; cosine ends at zero at the last step."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and the embedding have none."""
    adam_betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    label_smoothing: float = 0.1
    """Probability mass spread over the vocabulary, 0 to below 1."""
    gradient_clip: float = 1.0
    """Largest norm of a step's gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is
    validated and written as a model folder; 0 switches it off."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the matrix products; weights stay fp32. 'auto': bf16 where the device is fast
    in it (GPUs since Ampere, CPUs with AMX or AVX512-BF16)."""
    workers: int = 1
    """Training processes; must divide batches.lanes."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a worker. 'auto': where the cluster has enough GPUs."""
    cpus_per_worker: float | None = None
    """CPU cores that Ray reserves for a worker. Default: what leaves a core for the data tasks."""
    max_failures: int = 3
    """Lost workers or nodes after which training gives up."""
    validate_every: int = 500
    """Steps between validations (the last step always validates)."""
    patience: int = 0
    """Validations without a better loss after which training ends; 0: never."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    log_every: int = 50
    """Steps between log lines."""
    seed: int = 1
    """Seed of weights and dropout."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "learning_rate",
            "workers",
            "validate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "must be positive")
        for name in ("warmup_steps", "weight_decay", "gradient_clip", "max_failures", "patience", "seed"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "must not be negative")
        for name in ("label_smoothing", "ema_decay"):
            require(
                0 <= getattr(self, name) < 1,
                f"training.{name}",
                getattr(self, name),
                "must be at least 0 and below 1",
            )
        require(
            self.max_steps is None or self.max_steps > 0,
            "training.max_steps",
            self.max_steps,
            "must be positive",
        )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The search for a target."""

    search: Literal["beam", "sample", "mbr"] = "beam"
    """beam: the most probable target (greedy with a beam of 1). sample: targets drawn by their probability.
    mbr: of drawn targets the one that is most like the others (minimum Bayes risk, with chrF)."""
    beam_size: int = 4
    """Hypotheses kept for each row; 1 is greedy search."""
    n_best: int = 1
    """Hypotheses that come back for each row, the best first; at most beam_size."""
    length_penalty: float = 1.0
    """Exponent a of the length by which a finished hypothesis' log-probability is divided:
    0 prefers short targets, 1 is the mean per token."""
    length_normalization: Literal["average", "gnmt"] = "average"
    """What has the exponent: the length, or (5 + length) / 6 (Wu et al. 2016)."""
    coverage_penalty: float = 0.0
    """Weight of the sum of log(min(attention, 1)) over source tokens, added to a hypothesis' rank
    (Wu et al. 2016); 0 switches it off."""
    early_stopping: Literal["exact", "beam"] = "exact"
    """When a row's beam search ends: once nothing open can become better than what has ended (the result
    is that of searching to the longest length), or as soon as beam_size hypotheses have ended."""
    samples: int = 1
    """Targets drawn for each row, with search: sample or mbr."""
    temperature: float = 1.0
    """Sampling: log-probabilities are divided by it; below 1 the probable become more probable."""
    top_k: int = 0
    """Sampling: draw among the k most probable tokens; 0 switches it off."""
    top_p: float = 1.0
    """Sampling: draw among the fewest tokens that hold this share of the probability; 1 switches it off."""
    min_p: float = 0.0
    """Sampling: draw among tokens at least this times as probable as the most probable; 0 switches it off."""
    seed: int = 1
    """Seed of sampling; a row's samples follow from it and from the row's number alone."""
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
    """Sources longer than the model's longest: an error in their row, cut at the end (and marked), or
    searched in pieces whose targets are joined."""
    no_repeat_ngram: int = 0
    """Forbid n-grams of this size to occur twice in a target; 0 switches it off."""
    repetition_penalty: float = 1.0
    """Makes tokens that have occurred in the target less probable (Keskar et al. 2019); 1 switches it off."""
    suppress_tokens: list[int] = field(default_factory=list)
    """Ids that never occur in a target."""
    batch_rows: int = 128
    """Rows decoded together at most; does not change any result."""
    max_tokens: int = 0
    """Padded tokens decoded together at most, of sources and of all hypotheses at their longest; 0: as
    memory allows. Does not change any result."""
    memory_gb: float = 0.0
    """Memory for rows that are decoded together, in gigabytes; 0: half of what is free."""
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"
    """Arithmetic of the model, as in training.precision; int8: 8-bit weights and products, on a CPU."""

    def __post_init__(self) -> None:
        require(
            self.beam_size >= 1,
            "generation.beam_size",
            self.beam_size,
            "must be at least 1 (1 is greedy search)",
        )
        for name in (
            *("length_penalty", "coverage_penalty", "max_length_ratio", "min_length", "min_length_ratio", "top_k"),
            *("no_repeat_ngram", "max_tokens", "memory_gb", "seed"),
        ):
            require(getattr(self, name) >= 0, f"generation.{name}", getattr(self, name), "must not be negative")
        for name in ("max_length_extra", "batch_rows", "samples", "n_best"):
            require(getattr(self, name) >= 1, f"generation.{name}", getattr(self, name), "must be at least 1")
        for name in ("temperature", "repetition_penalty"):
            require(getattr(self, name) > 0, f"generation.{name}", getattr(self, name), "must be positive")
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
                self.coverage_penalty == 0,
                "generation.coverage_penalty",
                self.coverage_penalty,
                f"is for search: beam, and search is {self.search}; leave it 0",
            )
        require(
            self.search != "mbr" or self.samples >= 2,
            "generation.samples",
            self.samples,
            "must be at least 2 with search: mbr, which compares them",
        )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """The prediction job: its columns, its errors, its workers."""

    prefix: str = ""
    """Put before the names of the columns that are added, where the input has columns of these names."""
    provenance: bool = False
    """Add the columns file and row: where each row came from."""
    token_scores: bool = False
    """Task score: add the log-probability of every target token."""
    embedding_type: Literal["float32", "float16"] = "float32"
    """Task embed: the numbers of the vectors."""
    max_characters: int = 100_000
    """Longest source text in characters; a longer one gets an error in its row."""
    sentences: Literal["long", "all", "off"] = "long"
    """Task generate: which sources are split into sentences, each with a target of its own, joined again in
    order: those longer than the model takes, every one, or none. What is too long after that is up to
    generation.long_sources."""
    language: str | None = None
    """Language of the source (en, de, fr, es, zh ...), for abbreviations after which no sentence ends.
    Default: the abbreviations of all of them."""
    schemas: Literal["union", "same"] = "union"
    """Input files with different columns: the output has all of them, or the job is refused."""
    fail_fast: bool = False
    """End at the first row with an error, with exit code 3."""
    max_error_rate: float = 1.0
    """Share of rows with errors beyond which the job ends, with exit code 3."""
    unit_rows: int | None = None
    """Most rows of a unit, which is worked on and committed as a whole. Default: 4,096, or 65,536 where this
    machine has a GPU or use_gpu is 'yes'."""
    actors: int | None = None
    """Model replicas. Default: one for each GPU of the cluster, or else one for each group of CPU cores."""
    max_actors: int | None = None
    """Model replicas to which the job may grow. Default: 'actors'; with cluster.autoscaling as many as there
    are units."""
    cpus_per_actor: int = 1
    """CPU cores of a replica without a GPU."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a replica. 'auto': where the cluster has GPUs."""

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """Read a corpus, train a tokenizer, write token shards."""

    out: str
    """Folder (or s3:// place) for tokenizer.json, the shards and the manifest."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    overwrite: bool = False
    """Make it anew where 'out' holds tokens made from other settings or inputs."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, kw_only=True)
class InspectJob:
    """Show a tokens folder to people: counts, lengths, padding, examples."""

    tokens_folder: str
    """Folder that `tfray tokenize` wrote."""
    batches: BatchesConfig = field(default_factory=BatchesConfig)


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train a Transformer on token shards."""

    tokens_folder: str
    """Folder that `tfray tokenize` wrote."""
    out: str
    """Folder for checkpoints, the model folders best/ and last/, the log and the curves; on a
    cluster of several machines it must be one that all of them see."""
    model: ModelConfig = field(default_factory=ModelConfig)
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    overwrite: bool = False
    """Train anew where 'out' holds a run with other settings."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check_lanes(self.batches, self.training)


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Map a trained model over a data set and write Parquet."""

    model_folder: str
    """Model folder: config.json, model.safetensors, tokenizer.json."""
    input: Paths
    """Files, globs or folders: Parquet, JSONL, CSV, TSV or plain text (.gz, .zst, .bz2 too)."""
    out: str
    """Folder (or s3:// place) for the Parquet files: all input columns, and those of the task."""
    task: Literal["auto", "generate", "classify", "score", "embed"] = "auto"
    """Targets, labels, the log-probability of given targets, or vectors of the sources. 'auto': targets,
    or labels where the model was trained on them."""
    source_column: str | None = None
    """Column (or JSON field) of the source text. Default: source, or text if there is no source."""
    target_column: str | None = None
    """Task score: column of the target text. Default: target, or label."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    mode: Literal["resume", "new", "overwrite", "append"] = "resume"
    """resume: begin, or go on where a run of the same settings and inputs ended. new: refuse a place that
    holds anything. overwrite: replace what was made otherwise; it stays readable until the new is whole.
    append: add the input files that a finished output has not seen."""
    dry_run: bool = False
    """Write nothing; say how many units and rows there are, and from a sample of 100 rows how long it takes,
    how much memory, and how large the output gets."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, kw_only=True)
class StatusJob:
    """Say how far a tokenize or predict job is, from its commit log alone."""

    out: str
    """The job's output folder."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Compare predictions with references: BLEU and chrF, or accuracy and F1."""

    predictions: str
    """Folder that `tfray predict` wrote; _scores.json goes there."""
    task: Literal["auto", "translation", "classification"] = "auto"
    """Which scores. 'auto': what the model was trained for."""
    reference_column: str | None = None
    """Column of the reference text or label. Default: target, or label if there is no target."""
    reference_file: str | None = None
    """Plain text file of references, one line for each input row, where no column has them."""
    label_names: dict[str, str] = field(default_factory=dict)
    """Classification: value in the reference column -> name in the predictions."""


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """The whole way: tokenize, train, predict, evaluate; what is done and unchanged is skipped."""

    out: str
    """Folder for everything: tokens/, training/, predictions/."""
    test: Paths = field(default_factory=list)
    """Files to predict and to evaluate on, as in corpus.train. Default: what corpus.test_share holds out."""
    test_target: str | None = None
    """Plain text file of references, where 'test' is plain text."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    overwrite: bool = False
    """Do the stages whose settings or inputs have changed again, in place."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check_lanes(self.batches, self.training)
        require(
            bool(as_list(self.test) or self.corpus.test_share),
            "test",
            self.test,
            "names no file; name test files, or hold some rows out with corpus.test_share",
        )


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Dates as people write them -> ISO 8601: makes its data and runs the whole way on it."""

    out: str = "out/demo"
    """Folder for everything that the demo makes."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def check_lanes(batches: BatchesConfig, training: TrainingConfig) -> None:
    """Refuse a number of workers that does not divide the lanes, naming those that do."""
    if batches.lanes % training.workers:
        divisors = [n for n in range(1, batches.lanes + 1) if batches.lanes % n == 0]
        raise InputError(
            f"batches.lanes={batches.lanes} must be divisible by training.workers={training.workers}; "
            f"use {' or '.join(map(str, divisors))} workers, or {training.workers} or "
            f"{2 * training.workers} lanes"
        )
