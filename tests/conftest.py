"""Hypothesis: no deadline (machines are shared), and one folder may serve all examples of a test."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from tfray.tokens.shards import TokenFolder, shard_schema, write_shard
from tfray.tokens.special import EOS_ID

settings.register_profile(
    "tfray",
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tfray")


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., TokenFolder]:
    """Writes shards, each the name of a corpus and pairs of ids without special tokens, and returns their folder."""

    def write(
        folder: str, shards: list[tuple[str, list]], split: str = "train", vocab_size: int = 1000, **manifest: object
    ) -> TokenFolder:
        written = [
            write_shard(f"{folder}/{split}/{index}.parquet", corpus, [shard_table(corpus, pairs, vocab_size)])
            for index, (corpus, pairs) in enumerate(shards)
        ]
        common = {"shards": {split: [shard._asdict() for shard in written]}, "task": "translation"}
        return TokenFolder(folder, common | {"weights": {corpus: 1.0 for corpus, _ in shards}} | manifest)

    return write


def shard_table(corpus: str, pairs: list, vocab_size: int) -> pa.Table:
    """Return pairs of ids as a shard has them."""
    columns = {
        "source_ids": [[*source, EOS_ID] for source, _ in pairs],
        "target_ids": [list(target) for _, target in pairs],
        "source_length": [len(source) + 1 for source, _ in pairs],
        "target_length": [len(target) + 1 for _, target in pairs],
        "corpus": [corpus] * len(pairs),
        "file": ["file"] * len(pairs),
        "row": list(range(len(pairs))),
    }
    return pa.table(columns, schema=shard_schema(vocab_size))
