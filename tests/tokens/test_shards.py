"""Token shards: what is written comes back, with the lengths that the batch plan counts on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray import storage
from tfray.errors import InputError
from tfray.tokens.shards import SHARD_SCHEMA, open_tokens, read_columns, read_lengths, read_summary, write_shard
from tfray.tokens.special import EOS_ID

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=8)
PAIRS = st.lists(st.tuples(IDS, IDS), max_size=8)


@given(pairs=PAIRS)
def test_a_shard_holds_its_pairs_and_their_true_lengths(tmp_path: Path, pairs: list[tuple]) -> None:
    path = str(tmp_path / "part.parquet")
    rows = [7 * index for index in range(len(pairs))]
    write_shard(path, [source for source, _ in pairs], [target for _, target in pairs], rows, {})
    table = pq.read_table(path)
    assert table.schema.remove_metadata() == SHARD_SCHEMA
    assert table["source_ids"].to_pylist() == [[*source, EOS_ID] for source, _ in pairs]
    assert table["target_ids"].to_pylist() == [target for _, target in pairs]
    assert table["row"].to_pylist() == rows
    source_lengths, target_lengths = read_lengths(path)
    assert source_lengths.tolist() == [len(source) + 1 for source, _ in pairs]
    assert target_lengths.tolist() == [len(target) + 1 for _, target in pairs]


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text()))
def test_the_summary_travels_in_the_footer(tmp_path: Path, summary: dict) -> None:
    path = str(tmp_path / "part.parquet")
    write_shard(path, [[5]], [[6]], [0], summary)
    assert read_summary(path) == summary


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_a_missing_or_damaged_shard_is_refused_by_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "part.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"part\.parquet"):
        read_columns(str(path), ["row"])


def test_a_tokens_folder_that_is_missing_or_unfinished_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run that first"):
        open_tokens(str(tmp_path))
    manifest = {"fingerprint": "f", "task": "translation", "shards": {"train": {"a.parquet": 3, "b.parquet": 4}}}
    storage.publish_json(str(tmp_path / "_manifest.json"), manifest)
    with pytest.raises(InputError, match="not finished"):
        open_tokens(str(tmp_path))
    storage.publish_bytes(str(tmp_path / "_SUCCESS"), b"")
    folder = open_tokens(str(tmp_path))
    assert folder.shards("train") == [f"{tmp_path}/train/a.parquet", f"{tmp_path}/train/b.parquet"]
    assert folder.examples("train") == [3, 4]
    assert (folder.fingerprint, folder.task) == ("f", "translation")


def test_ids_are_four_bytes_and_not_eight() -> None:
    assert SHARD_SCHEMA.field("source_ids").type == SHARD_SCHEMA.field("target_ids").type == pa.list_(pa.int32())
