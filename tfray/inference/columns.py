"""The columns of a prediction file: those of the input, then those of the task, declared and not inferred."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from tfray.config import GenerationConfig, InferenceConfig
from tfray.corpus.columns import describe_field
from tfray.corpus.read import declare_schema
from tfray.errors import InputError
from tfray.units.files import InputFile

Task = Literal["generate", "classify", "score", "embed"]

BEST = [pa.field("prediction", pa.string()), pa.field("score", pa.float64())]
N_BEST = [pa.field("predictions", pa.list_(pa.string())), pa.field("scores", pa.list_(pa.float64()))]
SOURCE_TOKENS = pa.field("n_source_tokens", pa.int32())
TARGET_TOKENS = pa.field("n_target_tokens", pa.int32())
TRUNCATED = pa.field("truncated", pa.bool_())
SEARCH = [pa.field("n_segments", pa.int32()), TRUNCATED, pa.field("hit_max_length", pa.bool_())]
ERROR = pa.field("error", pa.string())
PROVENANCE = [pa.field("file", pa.string()), pa.field("row", pa.int64())]


def added_fields(task: Task, generation: GenerationConfig, config: InferenceConfig, width: int) -> list[pa.Field]:
    """Return the columns that a task adds, without their prefix; width: of an embedding."""
    several = N_BEST if generation.n_best > 1 else []
    number = pa.float16() if config.embedding_type == "float16" else pa.float32()
    own = {
        "generate": [*BEST, *several, *SEARCH, SOURCE_TOKENS, TARGET_TOKENS],
        "classify": [*BEST, *several, TRUNCATED, SOURCE_TOKENS],
        "score": [
            pa.field("score", pa.float64()),
            *([pa.field("token_scores", pa.list_(pa.float32()))] if config.token_scores else []),
            *(SOURCE_TOKENS, TARGET_TOKENS),
        ],
        "embed": [pa.field("embedding", pa.list_(number, width)), TRUNCATED, SOURCE_TOKENS],
    }[task]
    return [*own, ERROR, *(PROVENANCE if config.provenance else [])]


def output_schema(schema: pa.Schema, added: list[pa.Field], prefix: str) -> pa.Schema:
    """Return the schema of the output; raises InputError where a name is taken."""
    fields = [field.with_name(prefix + field.name) for field in added]
    taken = [field.name for field in fields if field.name in schema.names]
    if taken:
        raise InputError(
            f"the input has columns named {', '.join(taken)}, which predict adds itself; set inference.prefix, such "
            f"as --inference.prefix predicted_, or rename them in the input"
        )
    return pa.schema([*schema, *fields])


def input_schema(files: list[InputFile], text_columns: set[str], config: InferenceConfig) -> pa.Schema:
    """Return the columns of all files together, with the types that they have there.

    Raises InputError where two files disagree, or differ at all if that is not wanted.
    """
    declared = declare_schema(files, text_columns)
    own = [file.schema for file in files if file.schema is not None and file.format == "parquet" and not file.is_empty]
    if config.schemas == "same":
        check_same(files)
    if not own or len(own) < len([file for file in files if not file.is_empty]):
        return declared
    try:
        kinds = pa.unify_schemas([schema.remove_metadata() for schema in own], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # text in two encodings, such as plain and dictionary
        return declared
    return pa.schema([pa.field(name, kinds.field(name).type) for name in declared.names])


def check_same(files: list[InputFile]) -> None:
    """Raise InputError where two files have different columns, naming the first."""
    first: tuple[str, pa.Schema] | None = None
    for file in files:
        if file.is_empty:
            continue
        schema = declare_schema([file], set())
        if first is None:
            first = file.path, schema
        elif not schema.equals(first[1]):
            differing = sorted({*map(describe_field, schema)} ^ {*map(describe_field, first[1])})
            raise InputError(
                f"{file.path!r} has other columns than {first[0]!r} ({'; '.join(differing)[:300]}); make them alike, "
                "or say --inference.schemas union"
            )


def null_rows(schema: pa.Schema, rows: int) -> pa.Table:
    """Return as many rows of nulls."""
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)
