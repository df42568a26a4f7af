"""Where the texts of a tokenizer come apart into pieces that have the same ids wherever they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

SEPARATOR = "\x1f"  # between pieces that are encoded together; texts that contain it go to the library whole
SPACE_MARK = "▁"  # Metaspace writes a space so

# White space beyond that of ASCII, by any definition that has been in use, and the separator.
OTHER_SPACES = (
    r"[\x1c-\x1f\x{85}\x{a0}\x{1680}\x{180e}\x{2000}-\x{200b}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}]"
)

# Patterns that never join what stands before a single space with it.
WORD_PATTERNS = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)

# Normalizers that change each character for itself, where the characters are SIMPLE ones.
NORMALIZERS = ("Precompiled", "NFC", "NFKC", "NFD", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip")
# Letters and marks that never combine with a neighbour: Latin, Greek, Cyrillic, kana, Chinese, Hangul, full-width.
SIMPLE = (
    (0x20, 0x7E), (0xC0, 0x17F), (0x391, 0x3A1), (0x3A3, 0x3C9), (0x401, 0x401), (0x410, 0x44F), (0x451, 0x451),
    (0x2010, 0x2027), (0x3001, 0x3011), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x30FC, 0x30FC), (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3), (0xFF01, 0xFF5E),
)  # fmt: skip

OTHER, LETTER, DIGIT, MARK, SPACE, BREAK = range(6)


class Splitting(NamedTuple):
    """How the texts of a tokenizer come apart into pieces."""

    whole: str
    """Regular expression of the texts that are left to the library."""
    prefix: bool
    """A text is encoded as if a space stood before it."""
    cut: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(bytes, where texts begin) -> True where a piece begins."""
    library: tokenizers.Tokenizer
    """Encodes pieces, joined by `separator`."""
    separator: str
    token_bytes: np.ndarray
    """Bytes of text that each id stands for; empty where the ids in `opens` tell where a piece begins."""
    opens: np.ndarray
    """True for the ids that begin a piece."""


def splits_at_spaces(library: tokenizers.Tokenizer) -> Splitting | None:
    """Return how the tokenizer's texts come apart, or None where that is not known for certain."""
    model = library.model
    if library.truncation or library.padding or not isinstance(model, (models.BPE, models.Unigram)):
        return None
    if isinstance(model, models.BPE) and (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix):
        return None
    match parts_of(library.pre_tokenizer):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": prefix}]:
            return split_bytes(library, cut_as_gpt2, prefix)
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if pattern in WORD_PATTERNS:
            return split_bytes(library, cut_at_single_spaces, False)
        case [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, *others]:
            if all(part["type"] in ("Split", "Digits", "Punctuation") for part in others):
                return split_metaspace(library)
    return None


def knows_words(library: tokenizers.Tokenizer) -> bool:
    """Return whether the pre-tokenizer is one of those that cut between a letter or digit and a mark after it."""
    match parts_of(library.pre_tokenizer):
        case [{"type": "ByteLevel", "use_regex": True}]:
            return True
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}, {"type": "ByteLevel"}]:
            return pattern in WORD_PATTERNS
    return False


def parts_of(part: Any) -> list[dict[str, Any]]:
    """Return the settings of a normalizer or pre-tokenizer, one of several or alone, as in a tokenizer.json."""
    return list(flat(json.loads(part.__getstate__()) if part is not None else None))


def flat(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the parts of a part of a tokenizer.json, in order; none where it is null."""
    if part is None:
        return
    inner = next((part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part), None)
    if inner is None:
        yield part
    for piece in inner or []:
        yield from flat(piece)


def plain_tokens(library: tokenizers.Tokenizer) -> list[str]:
    """Return the added tokens that texts can spell, as regular expressions."""
    added = library.get_added_tokens_decoder().values()
    return [re.escape(token.content) for token in added if not (token.special and library.encode_special_tokens)]


def split_bytes(
    library: tokenizers.Tokenizer, cut: Callable[[np.ndarray, np.ndarray], np.ndarray], add_prefix_space: bool
) -> Splitting | None:
    """Return how the texts of a byte-level tokenizer come apart."""
    prepends = library.normalizer is not None
    if prepends and (parts_of(library.normalizer) != [{"type": "Prepend", "prepend": " "}] or add_prefix_space):
        return None
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= library.get_vocab(with_added_tokens=False).keys():
        return None
    pieces = tokenizers.Tokenizer(library.model)
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.CharDelimiterSplit(SEPARATOR), own if cut is cut_as_gpt2 else library.pre_tokenizer]
    )
    whole = ["^$", OTHER_SPACES, *plain_tokens(library)]
    if add_prefix_space:
        whole.append(r"^\s")  # gets no second space
    token_bytes = token_array(library, len)  # the alphabet has one character for each byte
    return Splitting(
        "|".join(whole), prepends or add_prefix_space, cut, pieces, SEPARATOR, token_bytes, np.empty(0, bool)
    )


def split_metaspace(library: tokenizers.Tokenizer) -> Splitting | None:
    """Return how the texts of a tokenizer in the manner of SentencePiece come apart."""
    if SPACE_MARK not in library.get_vocab(with_added_tokens=False):
        return None
    whole = ["^$", "^ ", SPACE_MARK, *plain_tokens(library)]
    if library.normalizer is not None:
        if len(whole) > 3 or not changes_characters_alone(parts_of(library.normalizer)):
            return None
        whole += ["  ", " $", f"[^{simple_characters(library.normalizer)}]"]
    pieces = tokenizers.Tokenizer(library.model)
    pieces.pre_tokenizer = library.pre_tokenizer
    if library.normalizer is not None:
        pieces.normalizer = library.normalizer
    opens = token_array(library, lambda token: token.startswith(SPACE_MARK)).astype(bool)
    return Splitting("|".join(whole), True, cut_at_spaces, pieces, "", np.empty(0, np.int64), opens)


def changes_characters_alone(normalizer: list[dict[str, Any]]) -> bool:
    """Return whether a normalizer treats every SIMPLE character for itself and leaves single spaces inside a text."""
    strips = False
    for part in normalizer:
        match part:
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}}:
                pass
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Replace", "pattern": {"Regex": r"\A +|[ ▁]+\z"}, "content": ""}:
                strips = True
            case {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"} if strips:
                pass
            case {"type": kind} if kind not in NORMALIZERS:
                return False
    return True


def simple_characters(normalizer: Any) -> str:
    """Return the SIMPLE characters that the normalizer makes something of, without a space, as a class of RE2."""
    good = [0x20]
    for first, last in SIMPLE:
        for code in range(max(first, 0x21), last + 1):
            text = normalizer.normalize_str(chr(code))
            if text and SPACE_MARK not in text and not any(map(str.isspace, text)):
                good.append(code)
    starts = [code for before, code in zip([-1, *good], good, strict=False) if code != before + 1]
    ends = [code for code, after in zip(good, [*good[1:], -1], strict=True) if after != code + 1]
    return "".join(f"\\x{{{start:x}}}-\\x{{{end:x}}}" for start, end in zip(starts, ends, strict=True))


def token_array(library: tokenizers.Tokenizer, value: Callable[[str], int]) -> np.ndarray:
    """Return a value of each token, by its id."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    values = np.zeros(max(vocabulary.values()) + 1, np.int64)
    values[list(vocabulary.values())] = [value(token) for token in vocabulary]
    return values


def byte_classes() -> np.ndarray:
    """Return the class of each byte: OTHER where GPT-2's pattern may join it with any neighbour."""
    classes = np.full(256, OTHER, np.uint8)
    for byte in range(0x21, 0x7F):
        classes[byte] = LETTER if chr(byte).isalpha() else DIGIT if chr(byte).isdigit() else MARK
    classes[ord("'")] = OTHER  # 's and 't are a mark and a letter in one
    classes[ord(" ")] = SPACE
    classes[[9, 10, 11, 12, 13]] = BREAK
    return classes


def pair_cuts() -> np.ndarray:
    """Return whether GPT-2's pattern is sure to cut between two classes of bytes, at 8 x left + right."""
    cuts = np.zeros(64, bool)
    for left in range(6):
        for right in range(6):
            runs = {left, right} <= {LETTER, DIGIT, MARK} and left != right
            into_space = left < SPACE <= right
            after_break = left == BREAK and right < SPACE
            cuts[8 * left + right] = runs or into_space or after_break
    return cuts


CLASS_OF_BYTE = byte_classes()
CUT_OF_PAIR = pair_cuts()
IS_LEAD = np.isin(np.arange(256), [0xE3, 0xEF, *range(0xE4, 0xEA)])  # of the characters that CLASS_OF_CODE knows
CLASS_OF_CODE = np.full(1 << 16, OTHER, np.uint8)
CLASS_OF_CODE[0x4E00:0x9FA6] = LETTER
CLASS_OF_CODE[list(map(ord, "、。《》「」！（），：；？"))] = MARK


def classify_chinese(text: np.ndarray, classes: np.ndarray) -> None:
    """Set the classes of Chinese characters, U+4E00 to U+9FA5, and of their usual marks."""
    leads = np.flatnonzero(IS_LEAD[text])
    if not len(leads):
        return
    codes = ((text[leads] & 15).astype(np.uint16) << 12) + ((text[leads + 1] & 63).astype(np.uint16) << 6)
    codes += text[leads + 2] & 63
    kinds = CLASS_OF_CODE[codes]
    leads, kinds = leads[kinds != OTHER], kinds[kinds != OTHER]
    for place in range(3):
        classes[leads + place] = kinds


def cut_as_gpt2(text: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Return True where GPT-2's pattern surely begins a new match: a space belongs to what follows it."""
    classes = CLASS_OF_BYTE[text]
    classify_chinese(text, classes)
    begins = np.zeros(len(text), bool)
    begins[1:] = CUT_OF_PAIR[(classes[:-1] << 3) + classes[1:]]
    # Of several white spaces the last one stands for itself, or with what follows; at the end of a text there is none.
    spaces = classes >= SPACE
    inside = np.flatnonzero(spaces[1:-1] & spaces[:-2] & ~spaces[2:]) + 1
    if len(inside):
        is_start = np.zeros(len(text) + 1, bool)
        is_start[row_starts] = True
        begins[inside[~is_start[inside + 1]]] = True
    return begins


def cut_at_single_spaces(text: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Return True at the spaces with something other than white space on either side."""
    is_white = CLASS_OF_BYTE[text] >= SPACE
    begins = np.zeros(len(text), bool)
    begins[1:-1] = (text[1:-1] == ord(" ")) & ~is_white[:-2] & ~is_white[2:]
    begins[row_starts[1:] - 1] = False  # a space at the end of a text
    return begins


def cut_at_spaces(text: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Return True at every space."""
    return text == ord(" ")
