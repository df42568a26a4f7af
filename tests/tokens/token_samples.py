"""Texts and small tokenizers of many kinds, for the tests beside this file."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers

from tfray.config import TokensConfig
from tfray.tokens.special import SPECIAL_TOKENS
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer

WORDS = (
    "the a man woman dog cat runs sleeps on green red house ein eine Mann Frau Hund läuft schläft grün it's don't "
    "I'll we've they'd O'Neil 's 't 're 've 'm 'll 'd 'S 'T x's y'' '' ' 12 3.14 1,000 2nd v1.2-rc3 foo_bar __init__ "
    'e.g. (see :ref:`this`), [0:10] "quoted" ... --- !? ?! naïve Straße Ελλάδα Привет, мир! 漢字、かな。 안녕 ¼ ² ① x² '
    "ª µ مرحبا שלום नमस्ते क्षि e\u0301 \u0301x \u200dx 👩‍👩‍👧 🏳️‍🌈 🇩🇪 \U0001fae8 \u0378 \U000e0001 \ufdfa ﬁ Å ½ ǅ ١٢ Ⅷ"
).split()
SPELLED = [*SPECIAL_TOKENS, "<label:a b>", "<label:x>", "<unk>", "[NEW]", "Ġ", "▁", "▁▁", "Ċ", "x▁y", "<0x41>", "\x00"]
WHITE = (
    "\t \n \r \r\n \n\n \x0b \x0c \x1c \x1d \x1e \x1f \x85 \xa0 \u1680 \u180e \u2000 \u200a \u200b \u2028 \u2029 "
    "\u202f \u205f \u2060 \u3000 \ufeff"
).split(" ")
CORPUS = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(1, 12)) for i in range(len(WORDS) * 3)]

WORD = st.sampled_from(WORDS)
SENTENCE = st.lists(WORD, max_size=8).map(" ".join)
PIECES = st.lists(
    st.sampled_from([*WORDS, *SPELLED, *WHITE, *[" "] * 40, *["  ", "   "] * 5, *"ab1.'ä漢"]), max_size=12
).map("".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ASCII = st.text(st.characters(max_codepoint=0x80), max_size=20)
TEXTS = st.lists(SENTENCE | PIECES | PIECES | ASCII | ANY_TEXT, max_size=12)


@cache
def own(algorithm: str, vocab_size: int) -> Tokenizer:
    return train_tokenizer(CORPUS, TokensConfig(algorithm=algorithm, vocab_size=vocab_size), ["a b", "x"])


def trained(model: Any, trainer: Any, pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer
    if normalizer:
        library.normalizer = normalizer
    library.train_from_iterator(CORPUS, trainer=trainer)
    return library


def byte_level(pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(models.BPE(), trainer, pre_tokenizer, normalizer)


def metaspace(algorithm: str, normalizer: Any = None, scheme: str = "always") -> tokenizers.Tokenizer:
    special = [*SPECIAL_TOKENS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    common = dict(vocab_size=700, special_tokens=special, show_progress=False)
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    if algorithm == "unigram":
        trainer = trainers.UnigramTrainer(**common, unk_token="<unk>")
        library = trained(models.Unigram(), trainer, pre_tokenizer, normalizer)
    else:
        model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        library = trained(model, trainers.BpeTrainer(**common), pre_tokenizer, normalizer)
    return library


def with_token(library: tokenizers.Tokenizer, **how: bool) -> tokenizers.Tokenizer:
    library.add_tokens([AddedToken("[NEW]", **how), AddedToken("man", **how)])
    return library


def changed(library: tokenizers.Tokenizer, **settings: Any) -> tokenizers.Tokenizer:
    description = json.loads(library.to_str())
    description["model"].update(settings)
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def words_of(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


GPT2 = dict(add_prefix_space=False, use_regex=True)
