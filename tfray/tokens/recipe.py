"""The corpora of a job: their files and columns, and how a unit's rows become clean pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from tfray.config import CorpusConfig, PartConfig, Paths, as_list
from tfray.corpus.clean import Cleaned, clean_pairs
from tfray.corpus.columns import Columns, SettingNames, choose_columns, missing_columns
from tfray.corpus.near import load_datasketch
from tfray.corpus.read import declare_schema, read_blocks, with_schemas
from tfray.corpus.scripts import check_script
from tfray.errors import InputError
from tfray.units.files import InputFile, find_files
from tfray.units.plan import Unit


class LostFile(NamedTuple):
    """A file that is not used at all."""

    corpus: str
    path: str
    reason: str
    """`kind: message`."""
    bytes: int
    rows: int | None
    """None where nobody can tell."""


class Corpus(NamedTuple):
    """One corpus: the files that can be used and those that cannot."""

    name: str
    split: str
    """What its rows are for: train, valid or test."""
    files: list[InputFile]
    lost: list[LostFile]
    columns: Columns
    schema: pa.Schema
    weight: float


class Recipe(NamedTuple):
    """How rows become pairs, for every worker."""

    config: CorpusConfig
    columns: dict[str, Columns]
    """By corpus, as the schemas and splits are."""
    schemas: dict[str, pa.Schema]
    splits: dict[str, str]

    @property
    def first_columns(self) -> Columns:
        """Those of the first corpus."""
        return next(iter(self.columns.values()))

    @property
    def is_classification(self) -> bool:
        return self.first_columns.task == "classification"

    def clean_blocks(self, unit: Unit) -> Iterator[Cleaned]:
        """Yield a unit's pairs, block by block; raises DamagedFile where the file ends too early."""
        columns = self.columns[unit.corpus]
        for rows in read_blocks(unit, self.schemas[unit.corpus], columns.text):
            yield clean_pairs(rows, columns, self.config.text, self.config.clean, self.config.label_names)


def make_recipe(config: CorpusConfig, corpora: list[Corpus]) -> Recipe:
    """Return the recipe of all corpora."""
    return Recipe(
        config,
        {corpus.name: corpus.columns for corpus in corpora},
        {corpus.name: corpus.schema for corpus in corpora},
        {corpus.name: corpus.split for corpus in corpora},
    )


def find_corpora(config: CorpusConfig) -> list[Corpus]:
    """Return the corpora of a configuration, training first.

    Raises InputError where there is nothing to read, or no file has the columns.
    """
    check_script(config.clean.source_script, "corpus.clean.source_script")
    check_script(config.clean.target_script, "corpus.clean.target_script")
    if config.clean.near_duplicates:
        load_datasketch()
    if not (as_list(config.train) or config.parts):
        raise InputError("corpus.train is empty; name the training files, e.g. --corpus.train data/train.parquet")
    wanted = [
        ("corpus", "train", Files(config.train, config.train_target)),
        *((part.name, "train", part) for part in config.parts),
        ("valid", "valid", Files(config.valid, config.valid_target)),
        ("test", "test", Files(config.test, [])),
    ]
    corpora: list[Corpus] = []
    for name, split, files in wanted:
        if as_list(files.files):
            corpora.append(find_corpus(config, name, split, files, corpora))
    return corpora


class Files(NamedTuple):
    """Files that have no part of the configuration for themselves; read as a PartConfig."""

    files: Paths
    target_files: Paths
    source_column: str | None = None
    target_column: str | None = None
    weight: float = 1.0


def find_corpus(config: CorpusConfig, name: str, split: str, part: PartConfig | Files, before: list[Corpus]) -> Corpus:
    """Return one corpus; its task is that of the corpora before it."""
    settings = settings_of(name, split, part)
    found = find_files(as_list(part.files), as_list(part.target_files), settings.files, settings.target_files)
    files = with_schemas(found)
    lost = [lose(name, file, f"damaged_file: {file.damage}") for file in files if file.damage]
    files = [file for file in files if not file.damage]
    if not files:
        raise InputError(
            f"{settings.files}: none of its files can be read: {lost[0].path}: {lost[0].reason}; mend the file, or "
            "name others"
        )
    if all(file.is_empty for file in files):
        named = ", ".join(file.path for file in files[:3])
        raise InputError(f"{settings.files}: no row in {named}; the corpus is empty: fill the file, or name others")
    task = before[0].columns.task if before else config.task
    source, target = part.source_column or config.source_column, part.target_column or config.target_column
    columns = choose_columns(files, source, target, task, settings)
    unfit = {file.path: reason for file in files if (reason := unfit_reason(file, columns))}
    lost += [lose(name, file, unfit[file.path]) for file in files if file.path in unfit]
    files = [file for file in files if file.path not in unfit]
    declared = declare_schema(files, columns.text, columns.needed)
    schema = pa.schema([declared.field(columns.source), declared.field(columns.target)])
    return Corpus(name, split, files, lost, columns, schema, part.weight)


def settings_of(name: str, split: str, part: PartConfig | Files) -> SettingNames:
    """Return the settings that give a corpus' files and columns; columns of a part may be those of all corpora."""
    if not isinstance(part, PartConfig):
        side = None if split == "test" else f"corpus.{split}_target"
        return SettingNames(f"corpus.{split}", side, "corpus.source_column", "corpus.target_column")
    own = f"corpus.parts ({name})"
    columns = [
        f"{own if given else 'corpus'}.{column}"
        for column, given in (("source_column", part.source_column), ("target_column", part.target_column))
    ]
    return SettingNames(f"{own}.files", f"{own}.target_files", *columns)


def unfit_reason(file: InputFile, columns: Columns) -> str | None:
    """Return why no row of a file can be used, as `kind: message`, or None."""
    if file.is_empty or file.format == "jsonl":  # each line has fields of its own, and is judged by them
        return None
    reason = missing_columns(file, columns.needed, columns.text)
    return f"other_schema: {reason}" if reason else None


def lose(corpus: str, file: InputFile, reason: str) -> LostFile:
    """Return a file that is counted and named, but not used."""
    return LostFile(corpus, file.path, reason, file.bytes, file.rows)
