"""The encoder: the library's own ids, whatever the text, the tokenizer and the size of the cache."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.tokens.token_samples import CORPUS, GPT2, TEXTS, byte_level, changed, metaspace, own, with_token, words_of
from tfray.tokens import encoder as encoder_module
from tfray.tokens.encoder import Encoder
from tfray.tokens.splitting import WORD_PATTERNS, splits_at_spaces
from tfray.tokens.tokenizer import Tokenizer

SENTENCE_PIECE_LIKE = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
)
QUICK = {
    "bpe 300": lambda: own("bpe", 300).library,
    "bpe 600": lambda: own("bpe", 600).library,
    "bpe 2000": lambda: own("bpe", 2000).library,
    "unigram 300": lambda: own("unigram", 300).library,
    "unigram 600": lambda: own("unigram", 600).library,
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(**GPT2)),
    "gpt2 with a space in front": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)),
    "added token": lambda: with_token(byte_level(pre_tokenizers.ByteLevel(**GPT2)), normalized=False),
    "added stripping token": lambda: with_token(byte_level(pre_tokenizers.ByteLevel(**GPT2)), lstrip=True, rstrip=True),
    "added single word": lambda: with_token(
        byte_level(pre_tokenizers.ByteLevel(**GPT2), normalizers.Prepend(" ")), single_word=True, normalized=True
    ),
    "ignore merges": lambda: changed(byte_level(pre_tokenizers.ByteLevel(**GPT2)), ignore_merges=True),
    "llama 3": lambda: byte_level(words_of(WORD_PATTERNS[0])),
    "qwen": lambda: byte_level(words_of(WORD_PATTERNS[1])),
    "sentencepiece unigram": lambda: metaspace("unigram"),
    "sentencepiece bpe": lambda: metaspace("bpe"),
    "sentencepiece unigram normalized": lambda: metaspace("unigram", SENTENCE_PIECE_LIKE),
    "sentencepiece bpe lower case": lambda: metaspace(
        "bpe", normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    ),
    "sentencepiece bpe with a token": lambda: with_token(metaspace("bpe")),
}
ALONE = {
    "normalized bytes": lambda: byte_level(pre_tokenizers.ByteLevel(**GPT2), normalizers.NFC()),
    "whole texts": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "other pattern": lambda: byte_level(words_of(r"\s+")),
    "no space in front": lambda: metaspace("bpe", scheme="never"),
    "suffix": lambda: changed(byte_level(pre_tokenizers.ByteLevel(**GPT2)), end_of_word_suffix="</w>"),
    "normalized added token": lambda: with_token(metaspace("unigram", SENTENCE_PIECE_LIKE), normalized=True),
}


@cache
def library_of(name: str) -> Tokenizer:
    library = (QUICK | ALONE)[name]()
    return Tokenizer(library, library.to_str())


def assert_as_the_library(encoder: Encoder, tokenizer: Tokenizer, texts: list[str]) -> None:
    values, offsets = encoder.encode(pa.array(texts, pa.string()))
    expected = tokenizer.encode_batch(texts)
    assert values.dtype == np.int32 and offsets.dtype == np.int64
    assert [values[start:stop].tolist() for start, stop in pairwise(offsets)] == expected
    assert len(offsets) == len(texts) + 1 and offsets[-1] == len(values)


@pytest.mark.parametrize("name", QUICK)
def test_the_pieces_of_these_tokenizers_are_known(name: str) -> None:
    assert splits_at_spaces(library_of(name).library)


@pytest.mark.parametrize("name", ALONE)
def test_a_tokenizer_that_is_not_known_to_come_apart_is_left_to_the_library(name: str) -> None:
    tokenizer = library_of(name)
    assert splits_at_spaces(tokenizer.library) is None
    assert_as_the_library(Encoder(tokenizer), tokenizer, [*CORPUS[:50], "", " a  b "])


@pytest.mark.parametrize("name", QUICK)
@given(texts=TEXTS)
@settings(deadline=None, max_examples=60)
def test_any_text_has_the_ids_that_the_library_gives(name: str, texts: list[str]) -> None:
    tokenizer = library_of(name)
    encoder = shared_encoder(name)
    assert_as_the_library(encoder, tokenizer, texts)
    assert_as_the_library(encoder, tokenizer, texts)  # out of the cache


@cache
def shared_encoder(name: str) -> Encoder:
    return Encoder(library_of(name))


@pytest.mark.parametrize("cache_words", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", ["bpe 600", "unigram 600", "sentencepiece bpe"])
@given(batches=st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=30)
def test_a_full_cache_changes_no_id(name: str, cache_words: int, batches: list[list[str]]) -> None:
    tokenizer = library_of(name)
    encoder = Encoder(tokenizer, cache_words)
    for texts in batches:
        assert_as_the_library(encoder, tokenizer, texts)


@pytest.mark.parametrize("name", QUICK)
def test_every_pair_of_kinds_of_characters_is_cut_as_the_library_cuts_it(name: str) -> None:
    tokenizer = library_of(name)
    kinds = [
        *"aZ09._-'s \t\n\r\x0b\x0c\x00\x1b\x1c\x7fé漢字。，٣²",
        "\xa0",
        "\x85",
        "\u2028",
        "\u3000",
        "\u0301",
        "👩",
        "  ",
        "re",
    ]
    texts = [a + b + c for a in kinds for b in kinds for c in kinds]
    texts += ["x" + text + "y" for text in texts[::7]]
    assert_as_the_library(Encoder(tokenizer), tokenizer, texts)


@pytest.mark.parametrize("name", QUICK)
def test_every_code_point_beside_a_letter_and_a_space_has_the_library_s_ids(name: str) -> None:
    tokenizer = library_of(name)
    step = 1 if name in ("bpe 600", "sentencepiece unigram normalized") else 41
    codes = [code for code in range(0, 0x32000, step) if not 0xD800 <= code < 0xE000]
    texts = [f"a{chr(code)} {chr(code)}b {chr(code)}" for code in codes]
    texts += [f"漢{chr(code)}。{chr(code)}「1{chr(code)}字" for code in codes]
    assert_as_the_library(Encoder(tokenizer), tokenizer, texts)


@pytest.mark.parametrize("name", ["bpe 600", "unigram 600", "sentencepiece unigram"])
def test_long_words_and_many_texts_have_the_library_s_ids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(encoder_module, "MOST_CACHED_BYTES", 3000)
    tokenizer = library_of(name)
    texts = [
        "",
        *CORPUS,
        "ab" * 3000,
        "漢字" * 500,
        "a" * 300 + " b",
        *CORPUS[::3],
        "\n".join(CORPUS[:20]),
        "1" * 999,
        "",
    ]
    assert_as_the_library(Encoder(tokenizer, 50), tokenizer, texts)


def test_the_cache_stays_near_its_bound() -> None:
    encoder = Encoder(library_of("bpe 600"), cache_words=20)
    for start in range(0, len(CORPUS), 10):
        encoder.encode(pa.array(CORPUS[start : start + 10]))
        assert len(encoder.slots) <= 20 + 200
        assert len(encoder.slots) == len(encoder.starts) == len(encoder.lengths)
        assert len(encoder.ids) == encoder.lengths.sum()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts_may_come_in_any_arrow_type_of_strings(kind: pa.DataType) -> None:
    texts = pa.array(["ein Hund", "", "eine  Frau"], kind)
    tokenizer, encoder = library_of("bpe 600"), shared_encoder("bpe 600")
    expected = [index for row in tokenizer.encode_batch(texts.to_pylist()) for index in row]
    assert encoder.encode(texts)[0].tolist() == expected
    assert encoder.encode(pa.chunked_array([texts[:1], texts[1:]]))[0].tolist() == expected
    assert encoder.encode(texts[1:])[0].tolist() == tokenizer.encode_batch(["eine  Frau"])[0]


@pytest.mark.parametrize("empty", [pa.array([], pa.string()), pa.chunked_array([], pa.string())])
def test_no_texts_have_no_ids(empty: pa.Array) -> None:
    values, offsets = shared_encoder("bpe 600").encode(empty)
    assert values.tolist() == [] and values.dtype == np.int32 and offsets.tolist() == [0]


def test_a_missing_text_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 texts are null"):
        shared_encoder("bpe 600").encode(pa.array(["a", None]))


def test_decoding_gives_the_text_back() -> None:
    tokenizer = own("bpe", 600)
    values, offsets = Encoder(tokenizer).encode(pa.array(CORPUS))
    assert tokenizer.decode_batch([row.tolist() for row in np.split(values, offsets[1:-1])]) == CORPUS
