"""A SentencePiece .model as a tokenizer of the `tokenizers` library that gives the same pieces.

Of two unigram segmentations with the same score ('.' + '..' or '..' + '.') the libraries may take different ones.

The file is one protocol buffer message, of which a few fields matter; they are read here, so that
neither `sentencepiece` nor `protobuf` is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from tfray.errors import InputError

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """What of a .model decides about the pieces of a text."""

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    whitespace_as_suffix: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def read_model(data: bytes, name: str) -> SentencePieceModel:
    """Return the settings and pieces in a .model; raises InputError where it is not one."""
    try:
        model = fields(data)
        trainer, normalizer = (fields(model.get(number, [b""])[-1]) for number in (2, 3))
        pieces = [piece_of(fields(message)) for message in model.get(1, [])]
        if not pieces or any(not piece.text or not 1 <= piece.kind <= 6 for piece in pieces):
            raise ValueError("it has no pieces")
        return SentencePieceModel(
            pieces,
            model_type=trainer.get(3, [UNIGRAM])[-1],
            byte_fallback=bool(trainer.get(35, [0])[-1]),
            whitespace_as_suffix=bool(trainer.get(24, [0])[-1]),
            charsmap=normalizer.get(2, [b""])[-1],
            add_dummy_prefix=bool(normalizer.get(3, [1])[-1]),
            remove_extra_whitespaces=bool(normalizer.get(4, [1])[-1]),
            escape_whitespaces=bool(normalizer.get(5, [1])[-1]),
        )
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise InputError(
            f"{name!r} is not a readable SentencePiece model: {error}; give another, or leave tokens.tokenizer out"
        ) from error


def piece_of(message: dict[int, list[Any]]) -> Piece:
    (score,) = struct.unpack("<f", message.get(2, [bytes(4)])[-1])
    return Piece(message[1][-1].decode() if 1 in message else "", score, message.get(3, [NORMAL])[-1])


def fields(message: bytes) -> dict[int, list[Any]]:
    """Return the values of a protocol buffer message by their field numbers: numbers, or bytes."""
    values: dict[int, list[Any]] = {}
    for number, value in walk(message):
        values.setdefault(number, []).append(value)
    return values


def walk(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        if tag & 7 == 0:
            value, place = varint(message, place)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            length, place = varint(message, place)
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
        else:
            raise ValueError(f"byte {place} begins a field of unknown type")
        if place + length > len(message):
            raise ValueError("it ends too early")
        yield tag >> 3, message[place : place + length]
        place += length


def varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("it has a number of more than 64 bits")


def from_sentencepiece(data: bytes, name: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that gives the pieces of the .model with the same ids."""
    model = read_model(data, name)
    if model.model_type not in (UNIGRAM, BPE):
        raise InputError(
            f"{name!r} is a word or character model of SentencePiece; tfray adopts unigram and bpe models: give one of "
            "these, or leave tokens.tokenizer out"
        )
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        raise InputError(
            f"{name!r} was trained with --treat_whitespace_as_suffix or without escaped white space; train it without"
        )
    library = tokenizers.Tokenizer(unigram_of(model) if model.model_type == UNIGRAM else bpe_of(model))
    library.normalizer = normalizer_of(model)
    library.pre_tokenizer = pre_tokenizer_of(model)
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        parts.append(decoders.Strip(" ", left=1, right=0))
    library.decoder = decoders.Sequence(parts)
    control = [piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)]
    library.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in control])
    return library


def spelled(model: SentencePieceModel) -> list[Piece]:
    """Return the pieces, with a name that no text can spell where SentencePiece never uses one."""
    return [
        piece._replace(text=f"<unused {index}>") if piece.kind == UNUSED else piece
        for index, piece in enumerate(model.pieces)
    ]


def unigram_of(model: SentencePieceModel) -> models.Unigram:
    pieces = spelled(model)
    unknown = next((index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    return models.Unigram([(piece.text, piece.score) for piece in pieces], unknown, model.byte_fallback)


def bpe_of(model: SentencePieceModel) -> models.BPE:
    """Return the model whose merges are all ways to put two pieces together, the best-scored result first."""
    pieces = spelled(model)
    normal = {piece.text: (-piece.score, index) for index, piece in enumerate(pieces) if piece.kind == NORMAL}
    merges = [
        (*rank, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return models.BPE(
        vocab={piece.text: index for index, piece in enumerate(pieces)},
        merges=[(left, right) for _, _, left, right in sorted(merges)],
        unk_token=next((piece.text for piece in pieces if piece.kind == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=any(piece.kind == USER_DEFINED for piece in pieces),
    )


def normalizer_of(model: SentencePieceModel) -> Any:
    parts: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:  # of spaces alone; at the end, what stands for a space counts as one
        parts += [normalizers.Replace(Regex(r"\A +|[ ▁]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    parts.append(normalizers.Replace(" ", "▁"))
    if model.add_dummy_prefix:  # Metaspace sets none where there is a mark already, and SentencePiece does
        parts.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
    return normalizers.Sequence(parts)


def pre_tokenizer_of(model: SentencePieceModel) -> Any:
    used = [piece for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)]
    split = model.add_dummy_prefix and not any("▁" in piece.text[1:] for piece in used)
    scheme = "always" if model.add_dummy_prefix else "never"
    parts: list[Any] = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)]
    whole = sorted((piece.text for piece in used if piece.kind == USER_DEFINED), key=len, reverse=True)
    if whole:
        parts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), "isolated"))
    return pre_tokenizers.Sequence(parts) if whole else parts[0]
