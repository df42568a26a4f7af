"""The tokenizer: train, load, encode, decode; byte-level, so that any text comes back as it was.

One vocabulary serves both sides. Special tokens and label tokens exist only as ids: text that
spells them out is encoded as ordinary characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from tfray import storage
from tfray.config import TokensConfig, require
from tfray.errors import InputError
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS

TOKENIZER = "tokenizer.json"
LABEL_PREFIX = "<label:"
COPY = "copy its folder again, whole, or make it anew"


class Tokenizer:
    """Text <-> ids, with the special and label tokens of a task."""

    def __init__(self, library: tokenizers.Tokenizer, json: str) -> None:
        # The text is kept: the library rounds a unigram's scores anew each time it reads and writes them.
        self.json = json
        library.encode_special_tokens = True  # "</s>" in user text is six characters, not the end
        self.library = library
        added = library.get_added_tokens_decoder()
        self.label_ids: dict[str, int] = {
            token.content[len(LABEL_PREFIX) : -1]: index
            for index, token in sorted(added.items())
            if token.content.startswith(LABEL_PREFIX)
        }

    @classmethod
    def load(cls, path: str) -> Tokenizer:
        """Return the tokenizer in a tokenizer.json; raises InputError where it is damaged or not ours."""
        try:
            text = storage.read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path!r} cannot be read: {error}; {COPY}") from error
        return cls.from_json(text, path)

    @classmethod
    def from_json(cls, text: str, name: str = TOKENIZER) -> Tokenizer:
        """Return the tokenizer that a tokenizer.json's text describes."""
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{name!r} is not a readable tokenizer.json: {error}; {COPY}") from error
        found = [library.token_to_id(token) for token in SPECIAL_TOKENS]
        if found != [PAD_ID, BOS_ID, EOS_ID]:
            raise InputError(
                f"{name!r} has the special tokens {', '.join(SPECIAL_TOKENS)} at {found}; tfray's "
                f"tokenizers have them at {[PAD_ID, BOS_ID, EOS_ID]}; use one that tfray wrote, or let tfray tokenize "
                "adopt this one by tokens.tokenizer"
            )
        return cls(library, text)

    @property
    def vocab_size(self) -> int:
        return self.library.get_vocab_size()

    @property
    def labels(self) -> list[str]:
        """The label names of a classification task; none for text-to-text tasks."""
        return list(self.label_ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]

    def decode_batch(self, ids: list[list[int]]) -> list[str]:
        """Return the text of each row of ids; special tokens are left out."""
        return self.library.decode_batch(ids, skip_special_tokens=True)


def train_tokenizer(texts: Iterable[str], config: TokensConfig, labels: list[str]) -> Tokenizer:
    """Return a tokenizer trained on texts, with one token for each label; a BPE one does not depend on their order."""
    special = [*SPECIAL_TOKENS, *(f"{LABEL_PREFIX}{label}>" for label in labels)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = len(special) + len(alphabet)
    require(
        config.vocab_size > fixed,
        "tokens.vocab_size",
        config.vocab_size,
        f"leaves no room beside 256 bytes, {len(SPECIAL_TOKENS)} special tokens and {len(labels)} labels; "
        f"use more than {fixed}",
    )
    library = tokenizers.Tokenizer(models.BPE() if config.algorithm == "bpe" else models.Unigram())
    # A space in front makes the first word of a text the same token as inside; decoding removes it.
    library.normalizer = normalizers.Prepend(" ")
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", left=1, right=0)])
    common: dict[str, Any] = dict(
        vocab_size=config.vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trainer = (
        trainers.BpeTrainer(**common)
        if config.algorithm == "bpe"
        else trainers.UnigramTrainer(**common, unk_token=SPECIAL_TOKENS[0])
    )
    library.train_from_iterator(texts, trainer=trainer)
    return Tokenizer.from_json(library.to_str(pretty=True))
