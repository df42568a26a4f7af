"""Whether a tokens folder is still what its manifest says: checked before training, cheaply."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from tfray import storage
from tfray.errors import InputError
from tfray.tokens.shards import Shard, TokenFolder, tokens_fingerprint
from tfray.tokens.tokenizer import TOKENIZER
from tfray.units.files import THREADS

HASHED_BYTES = 1 << 30
"""A split up to this size is hashed before training, in about a second; shards of a larger one when they are read."""


def check_tokens(tokens: TokenFolder) -> None:
    """Raise InputError where the tokenizer or a shard is not the one that the manifest was written for."""
    check_fingerprint(tokens)
    with ThreadPoolExecutor(THREADS) as pool:
        for split in ("train", "valid"):
            shards, paths = tokens.shards(split), tokens.paths(split)
            sizes = list(pool.map(check_footer, shards, paths, [tokens.max_length] * len(shards)))
            if sum(sizes) <= HASHED_BYTES:
                list(pool.map(read_shard, paths, [shard.sha256 for shard in shards]))


def check_fingerprint(tokens: TokenFolder) -> None:
    """Raise InputError unless the tokenizer and the list of shards are those that were written together."""
    text = storage.read_text(storage.join(tokens.folder, TOKENIZER))
    if tokens_fingerprint(text, tokens.manifest["shards"]) != tokens.fingerprint:
        raise InputError(
            f"tokens_folder={tokens.folder!r}: its shards were made with another tokenizer than the {TOKENIZER} that "
            "lies there now, or its manifest was changed; put the old files back, or run `tfray tokenize` again"
        )


def check_footer(shard: Shard, path: str, max_length: int) -> int:
    """Return a shard's size in bytes; raises InputError where its footer is not what the manifest says."""
    try:
        with storage.open_patiently(path) as file:
            size = file.size()
            footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, f"is missing or damaged ({error})") from error
    if footer.num_rows != shard.pairs:
        raise damaged(path, f"has {footer.num_rows:,} pairs, the manifest says {shard.pairs:,}")
    longest = max(map(longest_of, (footer.row_group(index) for index in range(footer.num_row_groups))), default=0)
    if longest > max_length:
        raise InputError(
            f"shard {path!r} has a sequence of {longest} tokens, the model takes {max_length} "
            "(tokens.max_length of `tfray tokenize`); run `tfray tokenize` again"
        )
    return size


def longest_of(group: pq.RowGroupMetaData) -> int:
    """Return the longest length in a row group, by its statistics."""
    columns = (group.column(index) for index in range(group.num_columns))
    lengths = (column for column in columns if column.path_in_schema in ("source_length", "target_length"))
    return max((column.statistics.max for column in lengths if column.statistics), default=0)


def read_shard(path: str, sha256: str) -> bytes:
    """Return a shard's bytes; raises InputError where they are not those that were written."""
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise damaged(path, f"is missing or damaged ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise damaged(path, f"was changed: its SHA-256 is {found[:16]}..., the manifest says {sha256[:16]}...")
    return data


def damaged(path: str, what: str) -> InputError:
    """Return the error for a shard that cannot be trained on."""
    return InputError(f"shard {path!r} {' '.join(what.split())}; put the old file back, or run `tfray tokenize` again")
