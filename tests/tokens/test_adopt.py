"""Adopted tokenizers: the tokens of the original, under tfray's ids, for every text."""

from __future__ import annotations

import io
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import example, given, settings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tokens.token_samples import (
    CORPUS,
    GPT2,
    SPELLED,
    TEXTS,
    byte_level,
    changed,
    metaspace,
    own,
    with_token,
    words_of,
)
from tfray.errors import InputError
from tfray.tokens.adopt import adopt_tokenizer
from tfray.tokens.encoder import Encoder
from tfray.tokens.special import SPECIAL_TOKENS
from tfray.tokens.splitting import WORD_PATTERNS, splits_at_spaces
from tfray.tokens.tokenizer import Tokenizer

LABELS = ["good", "so > so", "ü"]


def roberta() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(**GPT2)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer=trainer)
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    library.enable_truncation(8)
    library.enable_padding(length=8)
    return library


def llama3() -> tokenizers.Tokenizer:
    library = changed(byte_level(words_of(WORD_PATTERNS[0])), ignore_merges=True)
    library.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    return library


def llama2() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # of the training alone
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    library.train_from_iterator(CORPUS, trainer=trainer)
    description = json.loads(library.to_str()) | {"pre_tokenizer": None}
    description["added_tokens"] = description["added_tokens"][:3]
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    return library


def t5() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer=trainer)
    library.add_special_tokens([f"<extra_id_{number}>" for number in range(5)])
    return library


def own_library(algorithm: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(own(algorithm, 600).json)


def piece_model(**options: Any) -> bytes:
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    options = (
        dict(vocab_size=420, minloglevel=2, num_threads=1, character_coverage=0.98, bos_id=1, eos_id=2, unk_id=0)
        | options
    )
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, hard_vocab_limit=False, **options
    )
    return model.getvalue()


ORIGINALS = {
    "own bpe": lambda: own_library("bpe"),
    "own unigram": lambda: own_library("unigram"),
    "roberta": roberta,
    "llama 2": llama2,
    "llama 3": llama3,
    "t5": t5,
    "metaspace bpe": lambda: metaspace("bpe"),
    "added token": lambda: with_token(roberta(), normalized=False),
}
SENTENCEPIECE = {
    "unigram": {},
    "unigram with bytes": dict(byte_fallback=True, vocab_size=700),
    "unigram as is": dict(normalization_rule_name="identity", remove_extra_whitespaces=False),
    "unigram over spaces": dict(split_by_whitespace=False),
    "unigram without a space in front": dict(add_dummy_prefix=False),
    "unigram with symbols": dict(user_defined_symbols=["e.g.", "[0:10]", "man"]),
    "unigram nfkc": dict(normalization_rule_name="nfkc_cf", pad_id=3),
    "bpe": dict(model_type="bpe"),
    "bpe with bytes": dict(model_type="bpe", byte_fallback=True, vocab_size=700),
    "bpe as is": dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False),
    "bpe with symbols": dict(model_type="bpe", user_defined_symbols=["e.g.", "[0:10]", "man"], vocab_size=500),
}


@cache
def original(name: str) -> tokenizers.Tokenizer:
    library = ORIGINALS[name]()
    library.encode_special_tokens = True
    return library


@cache
def adopted(name: str, tmp: Path) -> Tokenizer:
    path = tmp / f"{name}.json"
    path.write_text(original(name).to_str())
    return adopt_tokenizer(str(path), LABELS)


@cache
def processor(name: str) -> tuple[Any, bytes]:
    spm = pytest.importorskip("sentencepiece")
    model = piece_model(**SENTENCEPIECE[name])
    return spm.SentencePieceProcessor(model_proto=model), model


@cache
def adopted_model(name: str, tmp: Path) -> Tokenizer:
    path = tmp / f"{name}.model"
    path.write_bytes(processor(name)[1])
    return adopt_tokenizer(str(path), LABELS)


@pytest.fixture(scope="session")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adopted")


def strings(tokenizer: Tokenizer, texts: list[str]) -> list[list[str | None]]:
    values, offsets = Encoder(tokenizer).encode(pa.array(texts, pa.string()))
    rows = [values[start:stop].tolist() for start, stop in zip(offsets, offsets[1:], strict=False)]  # noqa: RUF007
    assert rows == tokenizer.encode_batch(texts)
    return [[tokenizer.library.id_to_token(index) for index in row] for row in rows]


def spells_a_special_token(text: str) -> bool:
    return any(token in text for token in ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<label:", "<0x", "<extra", "<|"))


@pytest.mark.parametrize("name", ORIGINALS)
@given(texts=TEXTS)
@settings(deadline=None, max_examples=40)
def test_a_text_has_the_tokens_of_the_original(name: str, tmp: Path, texts: list[str]) -> None:
    texts = [text for text in texts if not spells_a_special_token(text)] + CORPUS[:20]
    library, tokenizer = original(name), adopted(name, tmp)
    library.no_truncation()
    library.no_padding()
    ids = [encoding.ids for encoding in library.encode_batch(texts, add_special_tokens=False)]
    before = [[library.id_to_token(index) for index in row] for row in ids]
    for tokens, expected in zip(strings(tokenizer, texts), before, strict=True):
        assert tokens == expected or "<unk>" in expected
        assert "<unk>" not in tokens


@pytest.mark.parametrize("name", ORIGINALS)
def test_special_tokens_come_first_then_the_others_in_their_order_then_the_labels(name: str, tmp: Path) -> None:
    vocabulary = original(name).get_vocab()
    tokenizer = adopted(name, tmp)
    tokens = [tokenizer.library.id_to_token(index) for index in range(tokenizer.vocab_size)]
    assert tokens[:3] == list(SPECIAL_TOKENS)
    assert tokenizer.labels == LABELS and tokens[-3:] == [f"<label:{label}>" for label in LABELS]
    kept = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if token not in SPECIAL_TOKENS]
    kept = [token for token in kept if not token.startswith("<label:")]
    assert tokens[3 : 3 + len(kept)] == kept
    assert len(tokens) <= len(kept) + 6 + 257
    assert tokenizer.library.post_processor is None


@pytest.mark.parametrize("name", ORIGINALS)
@given(texts=TEXTS)
@settings(deadline=None, max_examples=40)
def test_no_text_spells_a_special_token_and_each_comes_back(name: str, tmp: Path, texts: list[str]) -> None:
    check_that_text_stays_text(adopted(name, tmp), texts, exact=name not in ("t5", "metaspace bpe", "llama 2"))


@pytest.mark.parametrize("name", SENTENCEPIECE)
@given(texts=TEXTS)
@settings(deadline=None, max_examples=30)
def test_no_text_spells_a_special_token_of_sentencepiece(name: str, tmp: Path, texts: list[str]) -> None:
    check_that_text_stays_text(adopted_model(name, tmp), texts, exact=False)


def check_that_text_stays_text(tokenizer: Tokenizer, texts: list[str], exact: bool) -> None:
    texts = [*texts, *SPELLED, "<0x41>", "a<s>b", "<s></s>", "x <label:good> y", "<label:ü>", "<unk>"]
    special = {index for index, token in tokenizer.library.get_added_tokens_decoder().items() if token.special}
    ids = tokenizer.encode_batch(texts)
    assert not special & {index for row in ids for index in row}
    decoded = tokenizer.decode_batch(ids)
    if exact:
        assert decoded == texts
    plain = ["the man runs läuft", "漢 x 𓀀 y", "<0x41>", "a <s> b"]
    assert tokenizer.decode_batch(tokenizer.encode_batch(plain)) == plain


def extends_a_grapheme(character: str) -> bool:
    """Say whether a character may belong to the one before it."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


@pytest.mark.parametrize("name", SENTENCEPIECE)
@given(texts=TEXTS)
@example(texts=["▁", "the ▁ ▁", "▁man", "the▁man ", " ▁ ", "the man▁▁"])  # U+2581 stands for a space
@settings(deadline=None, max_examples=60)
def test_a_text_has_the_pieces_of_sentencepiece(name: str, tmp: Path, texts: list[str]) -> None:
    texts = [text for text in texts if not spells_a_special_token(text) and "\x00" not in text] + CORPUS[:30]
    spm, tokenizer = processor(name)[0], adopted_model(name, tmp)
    # The library loses what follows a replaced character in its grapheme.
    if "Precompiled" in str(tokenizer.library.normalizer):
        texts = [text for text in texts if not any(map(extends_a_grapheme, text))]
    for tokens, text in zip(strings(tokenizer, texts), texts, strict=True):
        ids, pieces = spm.encode(text), spm.encode(text, out_type=str)
        if spm.unk_id() in ids:
            continue
        # Two unigram segmentations with the same score, such as '.' + '..' and '..' + '.', are equally right.
        if name.startswith("unigram") and tokens != pieces:
            assert "".join(map(str, tokens)) == "".join(pieces), text
            score = sum(spm.get_score(spm.piece_to_id(str(token))) for token in tokens)
            assert score == pytest.approx(sum(map(spm.get_score, ids)), abs=1e-3), text
        else:
            assert tokens == pieces, text


@pytest.mark.parametrize(
    "name", ["unigram", "unigram with bytes", "unigram nfkc", "bpe", "bpe with bytes", "bpe as is"]
)
def test_the_usual_models_of_sentencepiece_are_fast(name: str, tmp: Path) -> None:
    assert (splits_at_spaces(adopted_model(name, tmp).library) is None) == name.endswith("as is")


def test_a_folder_stands_for_the_tokenizer_in_it(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"not looked at")
    (tmp_path / "tokenizer.json").write_text(original("roberta").to_str())
    (tmp_path / "config.json").write_text("{}")
    assert adopt_tokenizer(str(tmp_path), []).vocab_size == original("roberta").get_vocab_size()


@pytest.mark.parametrize("names", [[], ["a.model", "b.model"], ["config.json"]])
def test_a_folder_without_one_tokenizer_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        adopt_tokenizer(str(tmp_path), [])


@pytest.mark.parametrize("name", ["tokenizer.json", "spm.model"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"not it", b"\x0a\x05abc", b"\x0a\x00"])
def test_a_damaged_tokenizer_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.") + r"(.|\n)*leave tokens\.tokenizer out"):
        adopt_tokenizer(str(tmp_path / name), [])


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        adopt_tokenizer(str(tmp_path / "none.json"), [])


@pytest.mark.parametrize(
    "model", [models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), models.WordLevel({"a": 0}, unk_token="a")]
)
def test_a_tokenizer_with_unknown_words_is_refused(tmp_path: Path, model: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizers.Tokenizer(model).to_str())
    with pytest.raises(InputError, match=f"is a {type(model).__name__} tokenizer"):
        adopt_tokenizer(str(tmp_path), [])


def test_a_tokenizer_that_marks_the_ends_of_words_is_refused_where_it_cannot_spell_every_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        tokenizers.Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")).to_str()
    )
    with pytest.raises(InputError, match="'</w>'"):
        adopt_tokenizer(str(tmp_path), [])


def test_word_models_of_sentencepiece_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.model").write_bytes(piece_model(model_type="word", vocab_size=50))
    with pytest.raises(InputError, match=r"word or character model.*leave tokens\.tokenizer out"):
        adopt_tokenizer(str(tmp_path), [])


def test_an_added_token_keeps_its_ways(tmp: Path) -> None:
    tokenizer = adopted("added token", tmp)
    assert strings(tokenizer, ["a [NEW]b"])[0][1:3] == ["Ġ", "[NEW]"]
    assert AddedToken("[NEW]", normalized=False) in tokenizer.library.get_added_tokens_decoder().values()
