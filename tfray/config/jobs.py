"""One dataclass a command: what a job reads, where it writes, and the settings of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tfray.config.batches import BatchesConfig
from tfray.config.cluster import ClusterConfig
from tfray.config.corpus import CorpusConfig, TokensConfig
from tfray.config.inference import GenerationConfig, InferenceConfig
from tfray.config.model import ModelConfig
from tfray.config.rules import Paths, as_list, require, require_paths, text_keys
from tfray.config.training import TrainingConfig, check_lanes, check_r_drop


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

    def __post_init__(self) -> None:
        require_paths(self, "out")


@dataclass(frozen=True, kw_only=True)
class InspectJob:
    """Show a tokens folder to people: counts, lengths, padding, examples."""

    tokens_folder: str
    """Folder that `tfray tokenize` wrote."""
    batches: BatchesConfig = field(default_factory=BatchesConfig)

    def __post_init__(self) -> None:
        require_paths(self, "tokens_folder")


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
    allow_change: list[str] = field(default_factory=list)
    """Settings, by name, that may differ from those with which the run in 'out' began: it goes on with the new."""
    dry_run: bool = False
    """Train nothing; say how large the model is, how many steps and tokens there are, how much memory a worker takes
    and what would be written where."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require_paths(self, "tokens_folder", "out")
        check_lanes(self.batches, self.training)
        check_r_drop(self.model, self.training)


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
    """What is predicted. generate: targets; classify: labels; score: the log-probability of given targets; embed:
    vectors of the sources. 'auto': targets, or labels where the model was trained on them."""
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
    """Write nothing; say what is in 'out' and what the mode would do with it, how many units and rows there are, and
    from a sample of 100 rows how long it takes, how much memory, and how large the output gets."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require_paths(self, "model_folder", "input", "out")


@dataclass(frozen=True, kw_only=True)
class StatusJob:
    """Say how far a tokenize or predict job is, from its commit log alone."""

    out: str
    """The job's output folder."""
    json: bool = False
    """Say it as one line of JSON, for programs: the state, units, rows and errors, rates, and the seconds left."""

    def __post_init__(self) -> None:
        require_paths(self, "out")


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

    def __post_init__(self) -> None:
        require_paths(self, "predictions", "reference_file")
        object.__setattr__(self, "label_names", text_keys(self.label_names))


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
    allow_change: list[str] = field(default_factory=list)
    """Settings of the training, by name, that may differ from those with which it began: it goes on with the new."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require_paths(self, "out", "test", "test_target")
        check_lanes(self.batches, self.training)
        check_r_drop(self.model, self.training)
        require(
            bool(as_list(self.test) or self.corpus.test_share),
            "test",
            self.test,
            "names no file; name test files, or hold some rows out with corpus.test_share",
        )
        require(
            not self.test_target or bool(as_list(self.test)),
            "test_target",
            self.test_target,
            "has the references of 'test', which names no file; name the test files, or leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Dates as people write them -> ISO 8601: makes its data and runs the whole way on it."""

    out: str = "out/demo"
    """Folder for everything that the demo makes."""
    overwrite: bool = False
    """Do the stages whose settings or inputs have changed again, in place."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require_paths(self, "out")
