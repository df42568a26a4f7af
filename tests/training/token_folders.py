"""A small tokens folder as `tfray tokenize` leaves one, made without Ray."""

from __future__ import annotations

import random
from pathlib import Path

from tests.conftest import shard_table
from tests.tokens.token_samples import own
from tfray import storage
from tfray.tokens.shards import FORMAT_VERSION, TokenFolder, open_tokens, write_shard

VOCABULARY, MAX_LENGTH = 400, 24


def make_token_folder(folder: Path, shards: int = 4, pairs: int = 60, valid_pairs: int = 40) -> TokenFolder:
    """Write shards of random pairs, all different, in which the target is the source backwards."""
    chance = random.Random(1)
    tokenizer = own("bpe", VOCABULARY)

    def some(count: int) -> list[tuple[list[int], list[int]]]:
        sources = [
            [chance.randrange(10, tokenizer.vocab_size) for _ in range(chance.randint(3, 14))] for _ in range(count)
        ]
        return [(source, source[::-1]) for source in sources]

    sizes = {"train": [pairs] * shards, "valid": [valid_pairs] if valid_pairs else []}
    written = {
        split: [
            write_shard(f"{folder}/{split}/{index}.parquet", "a", [shard_table("a", some(count), tokenizer.vocab_size)])
            for index, count in enumerate(counts)
        ]
        for split, counts in sizes.items()
    }
    hashes = [shard.sha256 for found in written.values() for shard in found]
    manifest = {
        "format_version": 1,
        "made_from": {"tokens": {"max_length": MAX_LENGTH}, "corpus": {"text": {}}},
        "shard_format": FORMAT_VERSION,
        "task": "translation",
        "labels": [],
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": storage.fingerprint([tokenizer.json, hashes]),
        "weights": {"a": 1.0},
        "shards": {split: [shard._asdict() for shard in found] for split, found in written.items() if found},
    }
    storage.publish_text(f"{folder}/tokenizer.json", tokenizer.json)
    storage.publish_json(f"{folder}/_manifest.json", manifest)
    storage.publish_bytes(f"{folder}/_SUCCESS", b"")
    return open_tokens(str(folder))
