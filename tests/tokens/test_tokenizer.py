"""The tokenizer: any text comes back, and no text becomes a special token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tfray.config import TokensConfig
from tfray.errors import InputError
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer

ALGORITHMS = ("bpe", "unigram")
LABELS = ["positive", "negative", "7", "so > so", "sehr gut ü"]
WORDS = "the a man woman dog cat runs sleeps on green red house ein eine Mann Frau Hund läuft schläft grün".split()
CORPUS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(200)]
SPELLED = [*SPECIAL_TOKENS, *(f"<label:{label}>" for label in LABELS), "<unk>", "Ġ", "▁", "Ċ"]

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*SPELLED, *WORDS, " ", "  ", "\n", "\t", "\u2028", "\x00", "漢字", "👩‍👩‍👧", "e\u0301"])
).map("".join)


@cache
def trained(algorithm: str) -> Tokenizer:
    return train_tokenizer(CORPUS, TokensConfig(algorithm=algorithm, vocab_size=320), LABELS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_any_text_comes_back_as_it_was(algorithm: str, texts: list[str]) -> None:
    tokenizer = trained(algorithm)
    assert tokenizer.decode_batch(tokenizer.encode_batch(texts)) == texts


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(text=ANY_TEXT)
def test_no_text_becomes_a_special_or_label_or_unknown_token(algorithm: str, text: str) -> None:
    tokenizer = trained(algorithm)
    (ids,) = tokenizer.encode_batch([text])
    assert not {PAD_ID, BOS_ID, EOS_ID, *tokenizer.label_ids.values()} & set(ids)
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    assert bool(ids) == bool(text)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_a_saved_tokenizer_encodes_as_the_one_that_was_saved(algorithm: str, texts: list[str]) -> None:
    tokenizer = trained(algorithm)
    loaded = Tokenizer.from_json(tokenizer.json)
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert loaded.label_ids == tokenizer.label_ids
    assert loaded.json == tokenizer.json


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_are_left_out_of_the_text(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    (ids,) = tokenizer.encode_batch(["ein Hund"])
    assert tokenizer.decode_batch([[BOS_ID, *ids, EOS_ID, PAD_ID, *tokenizer.label_ids.values()]]) == ["ein Hund"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(ids=st.lists(st.integers(0, 319)))
def test_whatever_ids_a_model_gives_there_is_a_text(algorithm: str, ids: list[int]) -> None:
    (text,) = trained(algorithm).decode_batch([ids])
    text.encode("utf-8")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_word_is_the_same_token_at_the_start_and_inside(algorithm: str) -> None:
    one, two = trained(algorithm).encode_batch(["Hund", "Hund Hund"])
    assert two == one + one


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_label_has_one_id_after_the_special_tokens_in_the_order_given(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    assert tokenizer.labels == LABELS
    assert tokenizer.label_ids == {label: index for index, label in enumerate(LABELS, start=3)}
    assert train_tokenizer(CORPUS, TokensConfig(vocab_size=320), []).labels == []


def test_training_bpe_twice_gives_the_same_file() -> None:
    first, second = (train_tokenizer(iter(CORPUS), TokensConfig(vocab_size=400), LABELS).json for _ in range(2))
    assert first == second


TRAIN = """
import hashlib, random, sys
from tfray.config import TokensConfig
from tfray.tokens.tokenizer import train_tokenizer
words = ["".join(random.Random(i).choices("abcdeäöü漢字", k=i % 9 + 1)) for i in range(300)]  # ties at every count
texts = [" ".join(random.Random(i).choices(words, k=i % 12 + 1)) for i in range(400)]
for _ in range(3):
    random.Random(sys.argv[1]).shuffle(texts)
    print(hashlib.sha256(train_tokenizer(texts, TokensConfig(vocab_size=900), ["x", "y"]).json.encode()).hexdigest())
"""


def test_bpe_training_gives_the_same_file_in_any_order_of_the_texts_and_with_any_number_of_threads() -> None:
    digests = []
    for seed, (threads, parallel) in enumerate([("1", "false"), ("1", "true"), ("2", "true"), ("5", "true")]):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        command = [sys.executable, "-c", TRAIN, str(seed)]
        digests += subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(digests) == 12 and len(set(digests)) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_vocabulary_is_no_larger_than_asked_for(algorithm: str) -> None:
    assert trained(algorithm).vocab_size <= 320


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_vocabulary_without_room_beside_bytes_and_labels_is_refused_with_the_size(algorithm: str) -> None:
    labels = [str(number) for number in range(100)]
    with pytest.raises(InputError, match="use more than 359"):
        train_tokenizer(CORPUS, TokensConfig(algorithm=algorithm, vocab_size=359), labels)
    assert train_tokenizer(CORPUS, TokensConfig(algorithm=algorithm, vocab_size=360), labels).vocab_size == 360


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_corpus_of_one_letter_is_enough(algorithm: str) -> None:
    tokenizer = train_tokenizer(["a"], TokensConfig(algorithm=algorithm), [])
    assert tokenizer.decode_batch(tokenizer.encode_batch(["漢 a"])) == ["漢 a"]


def test_a_tokenizer_shortens_the_text_that_it_was_trained_on() -> None:
    ids = trained("bpe").encode_batch(CORPUS)
    assert sum(map(len, ids)) < sum(len(text.encode()) for text in CORPUS) / 2


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "BPE"']
)
def test_a_damaged_tokenizer_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(str(path))


def test_a_tokenizer_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(str(tmp_path / "tokenizer.json"))


def test_a_foreign_tokenizer_is_refused_for_its_special_tokens() -> None:
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE())
    foreign.add_special_tokens(["<s>", "<pad>", "</s>"])
    with pytest.raises(InputError, match=r"special tokens <pad>, <s>, </s> at \[1, 0, 2\]"):
        Tokenizer.from_json(foreign.to_str())


def test_a_file_cut_anywhere_is_refused_and_not_half_used() -> None:
    text = trained("bpe").json
    json.loads(text)
    for stop in range(0, len(text) - 1, len(text) // 20):
        with pytest.raises(InputError):
            Tokenizer.from_json(text[:stop])
