"""Token shards: what is written comes back, with the lengths that the batch plan counts on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray import storage
from tfray.errors import InputError
from tfray.tokens.shards import FORMAT_VERSION, Shard, open_tokens, read_columns, read_lengths, read_pairs, shard_schema
from tfray.tokens.special import EOS_ID

IDS = st.lists(st.integers(0, 999), max_size=8)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8)


@given(pairs=PAIRS)
def test_a_shard_holds_its_pairs_their_true_lengths_and_totals(
    tmp_path: Path, write_tokens: Callable, pairs: list[tuple]
) -> None:
    folder = write_tokens(str(tmp_path), [("news", pairs)])
    (path,) = folder.paths("train")
    table = read_pairs([path])
    assert table["source_ids"].to_pylist() == [[*source, EOS_ID] for source, _ in pairs]
    assert table["target_ids"].to_pylist() == [target for _, target in pairs]
    source_lengths, target_lengths = read_lengths(path)
    assert source_lengths.tolist() == [len(source) + 1 for source, _ in pairs]
    assert target_lengths.tolist() == [len(target) + 1 for _, target in pairs]
    shard = folder.shards("train")[0]
    assert (shard.pairs, shard.source_tokens, shard.target_tokens) == (
        len(pairs), sum(source_lengths), sum(target_lengths),
    )  # fmt: skip


def test_the_checksum_is_that_of_the_file(tmp_path: Path, write_tokens: Callable) -> None:
    folder = write_tokens(str(tmp_path), [("news", [([5], [6])])])
    (path,) = folder.paths("train")
    assert folder.shards("train")[0].sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_other_tools_read_a_shard_as_plain_lists_with_the_place_of_every_row(
    tmp_path: Path, write_tokens: Callable
) -> None:
    folder = write_tokens(str(tmp_path), [("news", [([5], [6])])])
    row = pq.read_table(folder.paths("train")[0]).to_pylist()[0]
    assert row == {
        "source_ids": [5, EOS_ID], "target_ids": [6], "source_length": 2, "target_length": 2,
        "corpus": "news", "file": "file", "row": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("vocab_size", "kind"), [(300, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.int32())])
def test_ids_take_two_bytes_where_the_vocabulary_allows(vocab_size: int, kind: pa.DataType) -> None:
    assert shard_schema(vocab_size).field("source_ids").type.value_type == kind


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_a_missing_or_damaged_shard_is_refused_by_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "part.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"part\.parquet"):
        read_columns(str(path), ["row"])


def test_a_tokens_folder_that_is_missing_unfinished_or_old_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run that first"):
        open_tokens(str(tmp_path))
    shards = [Shard(f"{name}.parquet", "news", pairs, 9, 9, "")._asdict() for name, pairs in (("a", 3), ("b", 4))]
    made = {"task": "translation", "weights": {"news": 1.0}, "made_from": {}}
    manifest = {"fingerprint": "f", "shards": {"train": shards}, **made}
    storage.publish_json(str(tmp_path / "_manifest.json"), manifest)
    with pytest.raises(InputError, match="not finished"):
        open_tokens(str(tmp_path))
    storage.publish_bytes(str(tmp_path / "_SUCCESS"), b"")
    with pytest.raises(InputError, match="shards of format None"):
        open_tokens(str(tmp_path))
    storage.publish_json(str(tmp_path / "_manifest.json"), {**manifest, "shard_format": FORMAT_VERSION})
    folder = open_tokens(str(tmp_path))
    assert folder.paths("train") == [f"{tmp_path}/train/a.parquet", f"{tmp_path}/train/b.parquet"]
    assert folder.pair_counts("train") == [3, 4] and not folder.has_split("valid")
    assert (folder.fingerprint, folder.task) == ("f", "translation")
