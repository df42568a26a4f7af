"""A tokens folder that is not what its manifest says is refused by name, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.training.token_folders import MAX_LENGTH, make_token_folder
from tfray.batches.plan import plan_pools
from tfray.batches.pool import PoolReader, mix_shards
from tfray.config import BatchesConfig
from tfray.errors import InputError
from tfray.tokens import check
from tfray.tokens.check import check_tokens
from tfray.tokens.shards import TokenFolder, open_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFolder:
    return make_token_folder(tmp_path / "tokens", shards=3, pairs=20)


def spoil(path: Path) -> None:
    """Change a byte of a file that is no part of its footer."""
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def test_a_folder_as_it_was_written_is_taken(tokens: TokenFolder) -> None:
    check_tokens(tokens)


def test_another_tokenizer_is_noticed(tokens: TokenFolder) -> None:
    path = Path(tokens.folder, "tokenizer.json")
    path.write_text(path.read_text().replace('"version"', '"version" '))
    with pytest.raises(InputError, match="made with another tokenizer"):
        check_tokens(tokens)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_shard_is_named(tokens: TokenFolder, split: str) -> None:
    Path(tokens.folder, split, "0.parquet").unlink()
    with pytest.raises(InputError, match=rf"{split}/0\.parquet' is missing"):
        check_tokens(tokens)


def test_a_shard_with_another_number_of_pairs_is_named(tokens: TokenFolder, tmp_path: Path) -> None:
    other = make_token_folder(tmp_path / "other", shards=1, pairs=21)
    shutil.copy(other.paths("train")[0], tokens.paths("train")[1])
    with pytest.raises(InputError, match=r"train/1\.parquet' has 21 pairs, the manifest says 20"):
        check_tokens(tokens)


def test_a_changed_shard_is_named_by_its_hash(tokens: TokenFolder) -> None:
    spoil(Path(tokens.paths("train")[2]))
    with pytest.raises(InputError, match=r"train/2\.parquet' was changed: its SHA-256 is"):
        check_tokens(tokens)


def test_in_a_large_corpus_a_changed_shard_is_noticed_when_it_is_read(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "HASHED_BYTES", 0)
    spoil(Path(tokens.paths("train")[2]))
    check_tokens(tokens)
    config = BatchesConfig()
    (pool,) = plan_pools(mix_shards(tokens, config), config, 0)
    with pytest.raises(InputError, match=r"train/2\.parquet' was changed"):
        PoolReader(tokens, config).read(pool, 0)


def test_a_sequence_longer_than_the_model_takes_is_refused_by_the_footers_alone(tokens: TokenFolder) -> None:
    path = Path(tokens.folder, "_manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["made_from"]["tokens"]["max_length"] == MAX_LENGTH
    manifest["made_from"]["tokens"]["max_length"] = 9
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"has a sequence of 15 tokens, the model takes 9"):
        check_tokens(open_tokens(tokens.folder))
