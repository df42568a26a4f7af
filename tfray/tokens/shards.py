"""Token shards: Parquet files of id lists with their lengths beside them, and the manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.errors import InputError
from tfray.tokens.special import EOS_ID
from tfray.tokens.tokenizer import Tokenizer
from tfray.units.ledger import MANIFEST, SUCCESS

TOKENIZER = "tokenizer.json"
SUMMARY_KEY = b"tfray.summary"
SHARD_SCHEMA = pa.schema(
    {
        "source_ids": pa.list_(pa.int32()),  # what the encoder reads; ends with eos
        "target_ids": pa.list_(pa.int32()),  # without bos and eos
        "source_length": pa.int32(),
        "target_length": pa.int32(),  # one more than target_ids: with bos, or with eos
        "row": pa.int64(),  # position in the input unit
    }
)


@dataclass(frozen=True)
class TokenFolder:
    """What `tfray tokenize` wrote."""

    folder: str
    manifest: dict

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(storage.join(self.folder, TOKENIZER))

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def task(self) -> str:
        return self.manifest["task"]

    def has_split(self, split: str) -> bool:
        return split in self.manifest["shards"]

    def shards(self, split: str) -> list[str]:
        """Return the paths of a split's shards that hold pairs, in order."""
        return [storage.join(self.folder, f"{split}/{name}") for name in self.manifest["shards"][split]]

    def examples(self, split: str) -> list[int]:
        """Return the number of pairs in each of a split's shards."""
        return list(self.manifest["shards"][split].values())


def open_tokens(folder: str) -> TokenFolder:
    """Return a finished tokens folder; raises InputError where it is missing or unfinished."""
    folder = storage.absolute(folder)
    if not storage.exists(storage.join(folder, MANIFEST)):
        raise InputError(f"tokens_folder={folder!r} is not a folder that `tfray tokenize` wrote; run that first")
    if not storage.exists(storage.join(folder, SUCCESS)):
        raise InputError(f"tokens_folder={folder!r} is not finished; start the same `tfray tokenize` again")
    return TokenFolder(folder, storage.read_json(storage.join(folder, MANIFEST)))


def write_shard(
    path: str, source_ids: list[list[int]], target_ids: list[list[int]], rows: list[int], summary: dict
) -> None:
    """Publish one shard; the unit's summary travels in its footer."""
    with_eos = [[*ids, EOS_ID] for ids in source_ids]
    columns = [
        pa.array(with_eos, SHARD_SCHEMA.field("source_ids").type),
        pa.array(target_ids, SHARD_SCHEMA.field("target_ids").type),
        pa.array([len(ids) for ids in with_eos], pa.int32()),
        pa.array([len(ids) + 1 for ids in target_ids], pa.int32()),
        pa.array(rows, pa.int64()),
    ]
    schema = SHARD_SCHEMA.with_metadata({SUMMARY_KEY: json.dumps(summary).encode()})
    storage.publish_table(path, pa.table(columns, schema=schema))


def read_summary(path: str) -> dict:
    """Return the unit's summary in a Parquet file's footer."""
    with storage.open_input(path) as file:
        metadata = pq.read_metadata(file).metadata or {}
    return json.loads(metadata[SUMMARY_KEY])


def read_lengths(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the source and target lengths of a shard's pairs, without reading the tokens."""
    table = read_columns(path, ["source_length", "target_length"])
    return table["source_length"].to_numpy(), table["target_length"].to_numpy()


def read_pairs(paths: list[str]) -> pa.Table:
    """Return the ids and lengths of several shards' pairs, one shard after the other."""
    names = ["source_ids", "target_ids", "source_length", "target_length"]
    return pa.concat_tables([read_columns(path, names) for path in paths])


def read_columns(path: str, names: list[str]) -> pa.Table:
    """Return columns of a shard; raises InputError where it is missing or damaged."""
    try:
        with storage.open_input(path) as file:
            return pq.read_table(file, columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"shard {path!r} is missing or damaged: {error}; run `tfray tokenize` again") from error
