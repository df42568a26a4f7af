"""A folder of predictions -> _scores.json beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from tfray import storage
from tfray.config import EvaluateJob, GenerationConfig, InferenceConfig, TextConfig
from tfray.corpus.clean import is_blank, label_text, value_text
from tfray.corpus.columns import TARGET_NAMES
from tfray.errors import InputError
from tfray.inference.columns import added_fields
from tfray.scores import classification_scores, in_lower_case, translation_scores
from tfray.units.ledger import MANIFEST, SUCCESS, has_manifest, read_manifest

logger = logging.getLogger(__name__)

TASKS = ("translation", "classification")
OWN_COLUMNS = ("prediction", "error")
# All that predict adds at most where there are predictions.
ADDED = added_fields("generate", GenerationConfig(n_best=2), InferenceConfig(provenance=True), width=1)


@dataclass
class Pairs:
    """Predictions and references to compare, and what was noticed while they were read."""

    predictions: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    rows_with_error: int = 0
    rows_without_reference: int = 0

    def add(self, prediction: str | None, error: str | None, reference: str | None) -> None:
        """Take in one row; one with an error has an empty, thus wrong, prediction."""
        if reference is None:
            self.rows_without_reference += 1
            return
        self.rows_with_error += error is not None
        self.predictions.append(prediction or "" if error is None else "")
        self.references.append(reference)


def evaluate(job: EvaluateJob) -> dict:
    """Return the scores of a finished predictions folder, and write them there as _scores.json."""
    check_finished(job.predictions)
    manifest = read_manifest(job.predictions)
    task = chosen_task(job, manifest)
    text = TextConfig(**manifest.get("text", {}))
    if manifest.get("task") == "classification":
        text = text.of_labels
    pairs = read_pairs(job, text)
    if not pairs.references:
        raise InputError(
            f"predictions={job.predictions!r} holds nothing to score: it has "
            f"{pairs.rows_without_reference} rows, none with a reference; check reference_column "
            "and label_names"
        )
    scores = {
        "task": task,
        **score_pairs(pairs, task, text),
        "rows_with_error": pairs.rows_with_error,
        "rows_without_reference": pairs.rows_without_reference,
    }
    path = storage.join(job.predictions, "_scores.json")
    try:
        storage.publish_json(path, scores)
    except storage.WRITE_ERRORS as error:  # the scores are shown all the same
        logger.warning("%r cannot be written: %s", path, " ".join(str(error).split()))
    return scores


def score_pairs(pairs: Pairs, task: str, text: TextConfig) -> dict:
    """Return the scores of a task; where what the model writes is in lower case, capitals in references do not count.

    text: how training has normalized targets.
    """
    if task == "translation":
        return translation_scores(pairs.predictions, pairs.references, lowercase=text.lowercase)
    predictions, references = (
        [label_text(label, text) for label in side] for side in (pairs.predictions, pairs.references)
    )
    if text.lowercase:
        predictions, references = in_lower_case(predictions), in_lower_case(references)
    return classification_scores(predictions, references)


def check_finished(folder: str) -> None:
    """Raise InputError unless a folder holds finished predictions."""
    if not storage.exists(folder):
        raise InputError(f"predictions={folder!r} does not exist; give the 'out' of `tfray predict`")
    if not has_manifest(folder):
        raise InputError(
            f"predictions={folder!r} holds no predictions (no {MANIFEST} in it); give the 'out' of `tfray predict`"
        )
    if not storage.exists(storage.join(folder, SUCCESS)):
        raise InputError(
            f"predictions={folder!r} is unfinished (no {SUCCESS} in it); start the same "
            "`tfray predict` command again, it goes on where it ended"
        )
    if not part_files(folder):  # of no rows predict writes a file, too
        raise InputError(
            f"predictions={folder!r} is a folder that `tfray predict` did not write (no part-*.parquet in it); give "
            "the 'out' of `tfray predict`"
        )


def chosen_task(job: EvaluateJob, manifest: dict) -> str:
    """Return the job's task, or else the one that the predictions' manifest names."""
    if job.task != "auto":
        return job.task
    task = manifest.get("task")
    if task not in TASKS:
        raise InputError(
            f"task='auto' cannot be decided: the manifest of {job.predictions!r} says "
            f"task={task!r}; use task={' or task='.join(TASKS)}"
        )
    return task


def read_pairs(job: EvaluateJob, text: TextConfig) -> Pairs:
    """Return every row's prediction and reference, in input order; text: how training has normalized labels."""
    if job.reference_file is None:
        rows = read_rows_with_column(job)
    elif job.reference_column is None:
        rows = read_rows_with_lines(job.predictions, job.reference_file)
    else:
        raise InputError(
            f"reference_file={job.reference_file!r} and reference_column={job.reference_column!r} "
            "exclude each other; leave one out"
        )
    pairs, names = Pairs(), {label_text(value, text): name for value, name in job.label_names.items()}
    for prediction, error, reference in rows:
        pairs.add(prediction, error, reference_text(reference, names, text))
    return pairs


def read_rows_with_column(job: EvaluateJob) -> Iterator[tuple]:
    """Yield prediction, error and the value of the reference column."""
    own, added = own_columns(job.predictions), added_columns(job.predictions)
    for part in part_files(job.predictions):
        with open_part(part) as file:
            check_own_columns(job.predictions, own, file.schema_arrow.names)
            column = find_reference_column(file.schema_arrow.names, job.reference_column, part, added)
            yield from read_columns(file, [*own, column])


def read_rows_with_lines(folder: str, reference_file: str) -> Iterator[tuple]:
    """Yield prediction, error and the line of the reference file; refuse unequal counts."""
    lines = reference_lines(reference_file, count_rows(folder), f"predictions in {folder!r}")
    position, own = 0, own_columns(folder)
    for part in part_files(folder):
        with open_part(part) as file:
            check_own_columns(folder, own, file.schema_arrow.names)
            for prediction, error in read_columns(file, own):
                yield prediction, error, lines[position]
                position += 1


def part_files(folder: str) -> list[str]:
    """Return the Parquet files of predictions in input order."""
    names = ((path, storage.base_name(path)) for path in storage.list_files(folder))
    return [path for path, name in names if name.startswith("part-") and name.endswith(".parquet")]


def open_part(path: str) -> pq.ParquetFile:
    """Return an open file of predictions."""
    filesystem, inner = storage.filesystem(path)
    try:
        return pq.ParquetFile(inner, filesystem=filesystem)
    except storage.READ_ERRORS as error:
        raise InputError(f"{path!r} is not a readable Parquet file: {error}; copy or predict it again") from error


def count_rows(folder: str) -> int:
    """Return the number of predictions, from the files' footers alone."""
    total = 0
    for part in part_files(folder):
        with open_part(part) as file:
            total += file.metadata.num_rows
    return total


def read_columns(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple]:
    """Yield a file's rows as tuples of the named columns, a batch in memory at a time."""
    for batch in file.iter_batches(columns=columns):
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def own_columns(folder: str) -> list[str]:
    """Return what the columns of predictions and errors are called."""
    prefix = read_prefix(folder)
    return [prefix + name for name in OWN_COLUMNS]


def added_columns(folder: str) -> set[str]:
    """Return what the columns that predict adds to those of the input are called."""
    prefix = read_prefix(folder)
    return {prefix + field.name for field in ADDED}


def read_prefix(folder: str) -> str:
    """Return what goes before the names of all added columns."""
    return read_made_from(folder).get("inference", {}).get("prefix", "")


def check_own_columns(folder: str, own: list[str], names: list[str]) -> None:
    """Raise InputError where a file lacks them: the task was one without predictions."""
    if not {*own} <= {*names}:
        task = read_made_from(folder).get("task")
        raise InputError(
            f"predictions={folder!r} holds no predictions to compare, for its task is {task!r} (no column {own[0]}); "
            "give the 'out' of `tfray predict --task generate` or `classify`"
        )


def read_made_from(folder: str) -> dict:
    """Return what predictions were made from."""
    return read_manifest(folder).get("made_from", {})


def find_reference_column(names: list[str], wanted: str | None, part: str, added: set[str]) -> str:
    """Return the column of references: the wanted one, or target, or label; added: those that are no input."""
    candidates = [wanted] if wanted else TARGET_NAMES
    for name in candidates:
        if name in names:
            return name
    inputs = ", ".join(name for name in names if name not in added)
    raise InputError(
        f"reference_column={' or '.join(candidates)} is not in {part!r}, its input columns are: "
        f"{inputs or 'none'}; set reference_column to one of them, or use reference_file"
    )


def reference_lines(path: str, rows: int | None, counted: str, setting: str = "reference_file") -> list[str]:
    """Return the lines of a file of references; raises InputError unless there is one for each row.

    counted: what the rows are, for the message; None: nobody knows how many there are.
    """
    lines = read_lines(path, setting)
    if rows not in (None, len(lines)):
        raise InputError(
            f"{setting}={path!r} has {len(lines)} lines for {rows} {counted}; it must have one line for each input "
            "row, in the same order"
        )
    return lines


def read_lines(path: str, setting: str) -> list[str]:
    """Return the lines of a plain text file without their ends."""
    if not storage.exists(path):
        raise InputError(f"{setting}={path!r} does not exist; check the path")
    try:
        text = storage.read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{setting}={path!r} is not UTF-8 text ({error}); give plain, uncompressed text") from error
    # Not splitlines(), which would also cut at characters inside a sentence (U+2028, form feed).
    lines = text.removeprefix("\ufeff").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def reference_text(value: object, label_names: dict[str, str], config: TextConfig) -> str | None:
    """Return a reference as text, through label_names if there are any; None if there is none, or a blank one."""
    text = value_text(value)
    if text is None or is_blank(text):  # training leaves such rows out
        return None
    return label_names.get(label_text(text, config)) or None if label_names else text
