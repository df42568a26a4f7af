"""The pairs of a pool: what is drawn, and BPE dropout that changes tokens and nothing else."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.batches.mixing import Draw, drawn_rows
from tfray.batches.plan import Pool, plan_pools
from tfray.batches.pool import PoolReader, check_dropout, mix_shards
from tfray.config import BatchesConfig, TokensConfig
from tfray.errors import InputError
from tfray.tokens.ragged import Ragged, with_eos, without_eos
from tfray.tokens.shards import TokenFolder
from tfray.tokens.special import EOS_ID
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer, train_tokenizer

MAX_LENGTH = 30
DROPOUT = BatchesConfig(bpe_dropout=0.4, pool_examples=40)
CONFIGS = {"dropout": DROPOUT, "mixed": BatchesConfig(bpe_dropout=0.4, pool_examples=40, weights={"a": 0.6, "b": 2.3})}
TEXTS = ["the cats sat on the mats", "these mats are the cats' own mats", "seventy cats sat there", "no mat"]


@pytest.fixture(scope="module")
def shards() -> list[tuple[str, list]]:
    """Pairs of 24 tokens at most, as the tokenizer below segments words that it knows."""
    random = np.random.default_rng(5)
    tokenizer = make_tokenizer("bpe")

    def ids() -> tuple[int, ...]:
        words = random.choice(" ".join(TEXTS).split(), random.integers(1, 22))
        return tuple(tokenizer.encode_batch([" ".join(words)])[0][:24])

    return [(corpus, [(ids(), ids()) for _ in range(20)]) for corpus in "aabab"]


@functools.cache
def make_tokenizer(algorithm: str) -> Tokenizer:
    return train_tokenizer(TEXTS, TokensConfig(vocab_size=320, algorithm=algorithm), [])  # type: ignore[arg-type]


def write_with_tokenizer(
    write_tokens, folder: Path, shards: list, algorithm: str = "bpe", task: str = "translation"
) -> TokenFolder:
    (folder / TOKENIZER).write_text(make_tokenizer(algorithm).json)
    made_from = {"tokens": {"max_length": MAX_LENGTH}}
    return write_tokens(str(folder), shards, task=task, made_from=made_from)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens, shards: list) -> TokenFolder:
    return write_with_tokenizer(write_tokens, tmp_path_factory.mktemp("tokens"), shards)


def rows_of(side: Ragged) -> list[list[int]]:
    return [side.values[start:stop].tolist() for start, stop in zip(side.offsets, side.offsets[1:], strict=False)]


@given(st.lists(st.lists(st.integers(3, 99), max_size=5), min_size=1, max_size=8))
def test_eos_goes_to_the_end_of_every_row_and_away_again(rows: list[list[int]]):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    bare = Ragged(np.array([token for row in rows for token in row], np.uint16), offsets)
    ended = with_eos(bare)
    assert rows_of(ended) == [[*row, EOS_ID] for row in rows] and ended.values.dtype == np.uint16
    assert rows_of(without_eos(ended)) == rows


@pytest.mark.parametrize("config", [BatchesConfig(), BatchesConfig(weights={"a": 0.4})], ids=["once", "0.4 times"])
def test_a_pool_holds_what_is_drawn_of_its_shards(tokens: TokenFolder, shards: list, config: BatchesConfig):
    portions = mix_shards(tokens, config)
    pool = Pool(3, (Draw(3, 8, 16), Draw(2, 20, 40))) if config.weights else Pool(3, (Draw(3, 0, 20), Draw(2, 20, 40)))
    pairs = PoolReader(tokens, config).read(pool, epoch=1)
    rows = [drawn_rows(draw, portions[draw.shard], config.seed) for draw in pool.draws]
    expected = [shards[draw.shard][1][row] for draw, own in zip(pool.draws, rows, strict=True) for row in own]
    assert rows_of(pairs.source) == [[*source, EOS_ID] for source, _ in expected]
    assert rows_of(pairs.target) == [list(target) for _, target in expected]
    assert pairs.lengths[0].tolist() == [len(source) + 1 for source, _ in expected]
    assert pairs.lengths[1].tolist() == [len(target) + 1 for _, target in expected]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bpe_dropout_changes_tokens_and_keeps_texts_order_eos_and_the_largest_length(
    tokens: TokenFolder, config: BatchesConfig
):
    pool = plan_pools(mix_shards(tokens, config), config, 0)[0]
    plain = PoolReader(tokens, BatchesConfig(weights=config.weights)).read(pool, 0)
    dropped = PoolReader(tokens, config).read(pool, 0)
    for before, after in zip(plain, dropped, strict=True):
        texts = [tokens.tokenizer.decode_batch(rows_of(side)) for side in (before, after)]
        assert texts[0] == texts[1]
        assert after.values.dtype == before.values.dtype == np.uint16
        assert len(after.values) > 1.2 * len(before.values)
        longer = np.diff(after.offsets) > np.diff(before.offsets)
        assert longer.any() and not longer[np.diff(before.offsets) > 20].all(), "too long: stays as it is"
    assert all(row[-1] == EOS_ID and row.count(EOS_ID) == 1 for row in rows_of(dropped.source))
    assert all(side.max() <= MAX_LENGTH for side in dropped.lengths)


def test_bpe_dropout_differs_by_side_pool_epoch_and_seed_and_not_by_who_reads(tokens: TokenFolder):
    def lengths(pool: int = 0, epoch: int = 0, seed: int = 1) -> list[int]:
        config = BatchesConfig(bpe_dropout=0.4, seed=seed)
        pairs = PoolReader(tokens, config).read(Pool(pool, (Draw(0, 0, 20), Draw(1, 0, 20))), epoch)
        return np.concatenate(pairs.lengths).tolist()

    reader = PoolReader(tokens, DROPOUT)
    reader.read(Pool(1, (Draw(3, 0, 20),)), 0)  # what was read before does not matter
    again = reader.read(Pool(0, (Draw(0, 0, 20), Draw(1, 0, 20))), 0)
    assert np.concatenate(again.lengths).tolist() == lengths()
    assert len({tuple(own) for own in (lengths(), lengths(pool=1), lengths(epoch=1), lengths(seed=2))}) == 4


def test_bpe_dropout_leaves_labels_alone(tmp_path: Path, write_tokens, shards: list):
    labelled = [(corpus, [(source, [300]) for source, _ in pairs]) for corpus, pairs in shards]
    tokens = write_with_tokenizer(write_tokens, tmp_path, labelled, task="classification")
    pairs = PoolReader(tokens, BatchesConfig(bpe_dropout=0.9)).read(Pool(0, (Draw(0, 0, 20),)), 0)
    assert rows_of(pairs.target) == [[300]] * 20
    assert len(pairs.source.values) > 1.3 * sum(len(source) + 1 for source, _ in labelled[0][1])


def test_bpe_dropout_is_refused_without_a_bpe_tokenizer(tmp_path: Path, write_tokens, shards: list):
    tokens = write_with_tokenizer(write_tokens, tmp_path, shards, algorithm="unigram")
    check_dropout(tokens, BatchesConfig())
    with pytest.raises(InputError, match=r"batches\.bpe_dropout needs a byte-level BPE tokenizer"):
        check_dropout(tokens, DROPOUT)


def test_bpe_dropout_is_accepted_with_a_bpe_tokenizer(tokens: TokenFolder):
    check_dropout(tokens, DROPOUT)


def test_weights_come_from_the_manifest_and_the_settings_come_before_them(tmp_path: Path, write_tokens, shards: list):
    tokens = write_tokens(str(tmp_path), shards, weights={"a": 2.0, "b": 0.5, "c": 1.0})
    assert [portion.repeats for portion in mix_shards(tokens, BatchesConfig())] == [2.0, 2.0, 0.5, 2.0, 0.5]
    config = BatchesConfig(weights={"b": 3.0, "c": 4.0})
    assert [portion.repeats for portion in mix_shards(tokens, config)] == [2.0, 2.0, 3.0, 2.0, 3.0]


def test_a_weight_of_a_corpus_that_is_not_there_is_refused_with_those_that_are(tokens: TokenFolder):
    with pytest.raises(InputError, match=r"batches\.weights\.news=2 .* there are: a, b$"):
        mix_shards(tokens, BatchesConfig(weights={"a": 1.0, "news": 2.0}))


def test_a_weight_that_no_epoch_has_room_for_is_refused(tokens: TokenFolder):
    with pytest.raises(InputError, match=r"each pair of '\w+' is seen 1e\+09 times in an epoch"):
        mix_shards(tokens, BatchesConfig(weights=dict.fromkeys(tokens.weights, 1e9)))


def test_weights_that_leave_an_epoch_empty_are_refused(tokens: TokenFolder):
    with pytest.raises(InputError, match="use larger weights"):
        mix_shards(tokens, BatchesConfig(weights={"a": 0.01, "b": 0.04}))
