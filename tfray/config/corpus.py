"""Settings of the corpus and of the tokenizer: raw text -> token shards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tfray.config.rules import Paths, as_list, check_types, free, require, require_paths, text_keys

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How text is normalized; stored in the model folder, so that prediction reads text as training did."""

    unicode: Literal["nfc", "nfkc", "off"] = "nfc"
    """Unicode form. nfc: canonical composition; nfkc: also compatibility characters (full-width, ligatures) replaced;
    off: as is."""
    control_characters: bool = True
    """Delete control characters (Unicode category Cc) other than white space, and byte-order marks."""
    whitespace: bool = True
    """Make every run of white space one space, and none at either end."""
    lowercase: bool = False
    """Make letters lower-case on both sides, as published results often are: predictions are then lower-case, too.
    One letter stays one, in any language: I is i, and so is İ. Names of labels keep their case."""

    @property
    def of_labels(self) -> TextConfig:
        """How names of labels are normalized."""
        return replace(self, lowercase=False)


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
    max_error_rate: float = free(0.01)
    """Share of rows lost by errors (damaged files and rows; not by the choices above) beyond which the
    job ends with exit code 3."""

    def __post_init__(self) -> None:
        check_types("corpus.clean", self)
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
        for name in ("min_script_share", "max_error_rate"):
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
        check_types(f"corpus.parts ({self.name})", self)
        require_paths(self, "files", "target_files", group=f"corpus.parts ({self.name}).")
        fits = self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        require(fits, "corpus.parts.name", self.name, "must be letters, digits, '-', '_' and '.'")
        require(
            self.name not in (*SPLITS, "corpus"), "corpus.parts.name", self.name, "is taken by tfray; choose another"
        )
        require(
            bool(as_list(self.files)),
            f"corpus.parts ({self.name}).files",
            self.files,
            "names no file; name files, or leave the corpus out",
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
    """Training rows that are dropped to keep validation and test texts out of training. either: those that share
    a text with them on either side (labels aside); source: those that share their source; off: none."""
    seed: int = 1
    """Seed of the splits and of the tokenizer's sample."""
    task: Literal["auto", "translation", "classification"] = "auto"
    """What the target is. translation: text; classification: one label. 'auto': classification where the target
    column is called label."""
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
        check_types("corpus", self)
        require_paths(self, "train", "train_target", "valid", "valid_target", "test", group="corpus.")
        object.__setattr__(self, "label_names", text_keys(self.label_names))
        for name in ("train", "valid"):
            targets = getattr(self, f"{name}_target")
            require(
                not as_list(targets) or bool(as_list(getattr(self, name))),
                f"corpus.{name}_target",
                targets,
                f"is the target side of corpus.{name}, which names no file; name its source side, or leave it out",
            )
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
    """Longest source or target in tokens; longer rows are dropped and counted. Also the longest that the trained
    model takes; `tfray predict` splits or refuses longer texts."""
    shard_tokens: int = 4_000_000
    """Tokens of both sides in one shard at most, about."""

    def __post_init__(self) -> None:
        check_types("tokens", self)
        require_paths(self, "tokenizer", group="tokens.")
        require(
            self.vocab_size >= 300,
            "tokens.vocab_size",
            self.vocab_size,
            "must be at least 300 (256 bytes and the special tokens)",
        )
        require(self.sample_rows > 0, "tokens.sample_rows", self.sample_rows, "must be positive")
        require(self.max_length >= 2, "tokens.max_length", self.max_length, "must be at least 2")
        require(self.shard_tokens >= 1000, "tokens.shard_tokens", self.shard_tokens, "must be at least 1000")
