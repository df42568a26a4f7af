"""Token shards: Parquet files of id lists with their lengths beside them, and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.config import SPLITS
from tfray.errors import InputError
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer
from tfray.units.ledger import MANIFEST, SUCCESS, read_manifest

FORMAT_VERSION = 2


def shard_schema(vocab_size: int) -> pa.Schema:
    """Return the columns of a shard; ids take two bytes where the vocabulary allows."""
    ids = pa.list_(pa.uint16() if vocab_size <= 1 << 16 else pa.int32())
    name = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            pa.field("source_ids", ids),  # what the encoder reads; ends with eos
            pa.field("target_ids", ids),  # without bos and eos
            pa.field("source_length", pa.int32()),
            pa.field("target_length", pa.int32()),  # one more than target_ids: with bos, or with eos
            pa.field("corpus", name),
            pa.field("file", name),
            pa.field("row", pa.int64()),  # number of the row in its file, from 0
        ]
    )


class Shard(NamedTuple):
    """What the manifest says of a shard."""

    name: str
    corpus: str
    pairs: int
    source_tokens: int
    """Tokens that the encoder reads, eos included."""
    target_tokens: int
    """Tokens that the decoder must predict, eos included."""
    sha256: str


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

    @property
    def max_length(self) -> int:
        """Tokens of the longest source or target that there may be."""
        return self.manifest["made_from"]["tokens"]["max_length"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def weights(self) -> dict[str, float]:
        """How often each training corpus' pairs are seen in an epoch, by its name."""
        return self.manifest["weights"]

    def has_split(self, split: str) -> bool:
        return bool(self.manifest["shards"].get(split))

    def shards(self, split: str) -> list[Shard]:
        """Return a split's shards, in the order of the input; each holds pairs."""
        return [Shard(**entry) for entry in self.manifest["shards"].get(split, [])]

    def paths(self, split: str) -> list[str]:
        """Return the paths of a split's shards."""
        return [storage.join(self.folder, f"{split}/{shard.name}") for shard in self.shards(split)]

    def pair_counts(self, split: str) -> list[int]:
        """Return the number of pairs in each of a split's shards."""
        return [shard.pairs for shard in self.shards(split)]


def tokens_fingerprint(tokenizer_json: str, shards: Mapping[str, Sequence[Mapping]]) -> str:
    """Return the fingerprint of a tokenizer and of the shards of each split, as the manifest has them."""
    hashes = [shard["sha256"] for split in SPLITS for shard in shards.get(split, [])]
    return storage.fingerprint([tokenizer_json, hashes])


def open_tokens(folder: str) -> TokenFolder:
    """Return a finished tokens folder; raises InputError where it is missing, unfinished or of another version."""
    folder = storage.absolute(folder)
    if not storage.exists(storage.join(folder, MANIFEST)):
        raise InputError(f"tokens_folder={folder!r} is not a folder that `tfray tokenize` wrote; run that first")
    if not storage.exists(storage.join(folder, SUCCESS)):
        raise InputError(f"tokens_folder={folder!r} is not finished; start the same `tfray tokenize` again")
    manifest = read_manifest(folder)
    version = manifest.get("shard_format")
    if version != FORMAT_VERSION:
        raise InputError(
            f"tokens_folder={folder!r} has shards of format {version}, this tfray reads {FORMAT_VERSION}; "
            "run `tfray tokenize` again, into a new folder"
        )
    return TokenFolder(folder, manifest)


class Digest:
    """A file that is written through, and hashed on the way."""

    def __init__(self, file: IO[bytes] | pa.NativeFile) -> None:
        self.file, self.sha256, self.closed = file, hashlib.sha256(), False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        """Leave closing to whoever opened the file."""


def write_shard(path: str, corpus: str, tables: list[pa.Table]) -> Shard:
    """Publish one shard, a row group a table, and return what the manifest says of it."""
    with storage.publish(path) as file:
        digest = Digest(file)
        with pq.ParquetWriter(pa.PythonFile(digest, mode="w"), tables[0].schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
    source, target = (
        sum(int(table[name].to_numpy().sum()) for table in tables) for name in ("source_length", "target_length")
    )
    return Shard(storage.base_name(path), corpus, sum(map(len, tables)), source, target, digest.sha256.hexdigest())


def read_lengths(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the source and target lengths of a shard's pairs, without reading the tokens."""
    table = read_columns(path, ["source_length", "target_length"])
    return table["source_length"].to_numpy(), table["target_length"].to_numpy()


PAIR_COLUMNS = ("source_ids", "target_ids", "source_length", "target_length")


def read_pairs(paths: list[str]) -> pa.Table:
    """Return ids and lengths of several shards' pairs, one shard after the other."""
    return pa.concat_tables([read_columns(path, PAIR_COLUMNS) for path in paths])


def read_columns(path: str, names: Sequence[str]) -> pa.Table:
    """Return columns of a shard; raises InputError where it is missing or damaged."""
    try:
        with storage.open_input(path) as file:
            return pq.read_table(file, columns=list(names))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"shard {path!r} is missing or damaged: {error}; run `tfray tokenize` again") from error
