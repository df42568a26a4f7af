"""BPE-dropout: other tokens, the same text, and the frequencies of the paper's algorithm."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.token_samples import CORPUS, TEXTS, metaspace, own
from tfray.errors import InputError
from tfray.tokens.dropout import BpeDropout, bytes_of_alphabet
from tfray.tokens.encoder import Encoder
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID
from tfray.tokens.tokenizer import Tokenizer


@cache
def dropout() -> BpeDropout:
    return BpeDropout(own("bpe", 600))


def encoded(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return Encoder(own("bpe", 600)).encode(pa.array(texts, pa.string()))


def rows(values: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [values[start:stop].tolist() for start, stop in zip(offsets, offsets[1:], strict=False)]  # noqa: RUF007


@cache
def merge_ranks() -> dict[tuple[str, ...], int]:
    merges = json.loads(own("bpe", 600).json)["model"]["merges"]
    return {tuple(merge): rank for rank, merge in enumerate(merges)}


def segment_slowly(word: str, rate: float, generator: random.Random) -> tuple[str, ...]:
    """Return the tokens of one pre-token by the paper's algorithm."""
    ranks = merge_ranks()
    tokens = list(word)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(tokens, tokens[1:], strict=False)) if pair in ranks]  # noqa: RUF007
        pairs = [pair for pair in pairs if generator.random() >= rate]
        if not pairs:
            return tuple(tokens)
        _, i = min(pairs)
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]


@given(texts=TEXTS, rate=st.sampled_from([1e-9, 0.1, 0.5, 0.99]), seed=st.integers(0, 2**70))
@settings(deadline=None)
def test_the_text_stays_the_same(texts: list[str], rate: float, seed: int) -> None:
    values, offsets = dropout().resegment(*encoded(texts), rate, seed)
    assert values.dtype == np.int32 and offsets.dtype == np.int64
    assert own("bpe", 600).decode_batch(rows(values, offsets)) == texts


@given(texts=TEXTS, seed=st.integers(0, 100))
@settings(deadline=None)
def test_without_skipped_merges_the_tokens_are_the_tokenizer_s(texts: list[str], seed: int) -> None:
    before = encoded(texts)
    for rate in (0.0, 1e-12):
        after = dropout().resegment(*before, rate, seed)
        assert rows(*after) == rows(*before)


@given(texts=TEXTS, rate=st.sampled_from([0.1, 0.5]), seed=st.integers(0, 100))
@settings(deadline=None)
def test_the_result_depends_on_the_arguments_alone(texts: list[str], rate: float, seed: int) -> None:
    before = encoded(texts)
    fresh = BpeDropout(Tokenizer.from_json(own("bpe", 600).json))
    assert rows(*fresh.resegment(*before, rate, seed)) == rows(*dropout().resegment(*before, rate, seed))


def test_special_and_label_tokens_stay_where_they_are() -> None:
    labels = list(own("bpe", 600).label_ids.values())
    (row,) = own("bpe", 600).encode_batch(["läuft Mann"])
    line = np.array([BOS_ID, *row, labels[0], *row, EOS_ID, PAD_ID, EOS_ID], np.uint16)
    for seed in range(20):
        values, _ = dropout().resegment(line, np.array([0, 0, len(line)]), 0.6, seed)
        kept = [index for index in values.tolist() if index <= EOS_ID or index in labels]
        assert kept == [BOS_ID, labels[0], EOS_ID, PAD_ID, EOS_ID]
        assert own("bpe", 600).decode_batch([values.tolist()]) == ["läuft Mann läuft Mann"]


def test_seeds_words_and_their_occurrences_are_segmented_differently() -> None:
    before = encoded(["schläft Frau schläft"] * 50)
    first, second = (dropout().resegment(*before, 0.5, seed) for seed in (1, 2))
    assert rows(*first) != rows(*second)
    assert 3 < len(set(map(tuple, rows(*first)))) <= 8 * 8 * 8


@pytest.mark.parametrize("word", ["schläft", "green", "sleeps"])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_frequencies_are_those_of_the_algorithm_and_every_segmentation_is_reached(word: str, rate: float) -> None:
    before, generator = encoded([word]), random.Random(1)
    library = own("bpe", 600).library
    draws = 2000
    found = Counter(
        tuple(map(library.id_to_token, dropout().resegment(*before, rate, seed)[0].tolist())) for seed in range(draws)
    )
    characters = {byte: character for character, byte in bytes_of_alphabet().items()}
    spelled = "".join(characters[byte] for byte in f" {word}".encode())
    expected = Counter(segment_slowly(spelled, rate, generator) for _ in range(draws))
    for tokens in {*found, *expected}:
        share = (found[tokens] + expected[tokens]) / 2 / draws
        assert abs(found[tokens] - expected[tokens]) / draws <= 5 * (2 * share / draws) ** 0.5, tokens
    assert {tokens for tokens, count in expected.items() if count > 20} <= set(found)


def test_more_dropout_makes_more_tokens() -> None:
    before = encoded(CORPUS)
    lengths = [len(dropout().resegment(*before, rate, 1)[0]) for rate in (0, 0.1, 0.3, 0.9, 1 - 1e-12)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[1]
    assert lengths[-1] == sum(len(f" {text}".encode()) for text in CORPUS)


def test_no_rows_stay_no_rows() -> None:
    values, offsets = dropout().resegment(np.empty(0, np.int32), np.zeros(3, np.int64), 0.5, 1)
    assert len(values) == 0 and offsets.tolist() == [0, 0, 0]


def test_the_alphabet_is_the_library_s() -> None:
    assert own("bpe", 600).library.decoder.decode(list(bytes_of_alphabet())[:94]) == bytes(range(33, 127)).decode()
    for character, byte in bytes_of_alphabet().items():
        assert own("bpe", 600).library.decoder.decode([character]) == (
            bytes([byte]).decode(errors="replace").lstrip(" ")
        )


@pytest.mark.parametrize(
    "tokenizer", [lambda: own("unigram", 600), lambda: Tokenizer(metaspace("bpe"), metaspace("bpe").to_str())]
)
def test_other_tokenizers_are_refused(tokenizer) -> None:
    with pytest.raises(InputError, match="byte-level BPE"):
        BpeDropout(tokenizer())
