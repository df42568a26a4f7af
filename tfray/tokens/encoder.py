"""Ids of many texts at once, the library's own, through a bounded cache of the pieces that texts are made of.

    "It's 20 dogs."  ->  " It's" | " 20" | " dogs" | "."  ->  distinct pieces  ->  cache, or the library  ->  ids

A tokenizer's model never sees more than one piece of its pre-tokenizer, so a text's ids are those of
its pieces, one after the other. NumPy finds cuts that the pre-tokenizer is sure to make too (it may
make more of them: a piece is encoded by the library, pre-tokenizer and all). Natural text repeats its
pieces, so nearly all of them are looked up and not encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import pre_tokenizers

from tfray.tokens.tokenizer import Tokenizer

SEPARATOR = "\x1f"  # between pieces that are encoded together; texts that contain it go to the library whole
CHUNK_ROWS, CHUNK_BYTES = 4096, 1 << 20
PIECES_AT_ONCE = 64
MOST_CACHED_BYTES = 1 << 25

# White space beyond that of ASCII, by any definition that has been in use.
OTHER_SPACES = (
    r"[\x1c-\x1f\x{85}\x{a0}\x{1680}\x{180e}\x{2000}-\x{200b}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}]"
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

OTHER, LETTER, DIGIT, MARK, SPACE, BREAK = range(6)


class Splitting(NamedTuple):
    """How the texts of a tokenizer come apart into pieces that have the same ids wherever they stand."""

    whole: str
    """Regular expression of the texts that are left to the library."""
    prefix: bool
    """A text is encoded as if a space stood before it."""
    cut: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(bytes, where texts begin) -> True where a piece begins."""
    library: tokenizers.Tokenizer
    """Encodes pieces, joined by `separator`."""
    separator: str
    token_bytes: np.ndarray | None
    """Bytes of text that each id stands for; None where the ids in `opens` tell where a piece begins."""
    opens: np.ndarray | None


class Encoder:
    """Text -> ids as by the tokenizer's library, without special tokens, several times as fast on natural text.

    Not more than about cache_words pieces and 32 MB of their text are kept (about 100 MB in all with the
    default), beside those of the texts at hand (1 MB, or one text); a full cache begins anew.
    """

    def __init__(self, tokenizer: Tokenizer, cache_words: int = 1 << 18) -> None:
        self.library = tokenizer.library
        self.splitting = splits_at_spaces(self.library)
        self.cache_words = cache_words
        self.forget()

    def forget(self) -> None:
        """Begin with an empty cache."""
        self.slots: dict[str, int] = {}
        self.starts = np.empty(0, np.int64)
        self.lengths = np.empty(0, np.int64)
        self.ids = np.empty(0, np.int32)
        self.cached_bytes = 0

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts (int32), and where each text's begin and the last one's end (int64)."""
        texts = as_strings(texts)
        encode = self.encode_chunk if self.splitting else self.encode_whole
        parts = [encode(chunk) for chunk in chunks(texts)]
        values = [values for values, _ in parts]
        return joined(values, np.int32), offsets_of(joined([lengths for _, lengths in parts], np.int64))

    def encode_whole(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and the lengths of texts by the library alone."""
        return encode_with(self.library, texts.to_pylist())

    def encode_chunk(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and the lengths of a few thousand texts."""
        assert self.splitting
        whole = pc.match_substring_regex(texts, self.splitting.whole).to_numpy(zero_copy_only=False)
        if whole.all():
            return self.encode_whole(texts)
        pieces, counts = cut_pieces(texts.filter(pa.array(~whole)) if whole.any() else texts, self.splitting)
        starts, lengths = self.look_up(pieces)
        if not whole.any():
            return gather(self.ids, starts, lengths), sum_runs(lengths, counts)
        # A text that the library encodes is one piece among the others; its ids follow the cached ones.
        other_ids, other_lengths = self.encode_whole(texts.filter(pa.array(whole)))
        counts = spread(whole, np.ones(len(other_lengths), np.int64), counts)
        is_text = np.repeat(whole, counts)
        starts = spread(is_text, len(self.ids) + offsets_of(other_lengths)[:-1], starts)
        lengths = spread(is_text, other_lengths, lengths)
        return gather(np.concatenate([self.ids, other_ids]), starts, lengths), sum_runs(lengths, counts)

    def look_up(self, pieces: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return where in self.ids each piece's ids begin, and how many they are."""
        if len(self.slots) > self.cache_words or self.cached_bytes > MOST_CACHED_BYTES:
            self.forget()
        coded = pieces.dictionary_encode()
        words = coded.dictionary.to_pylist()
        slots = np.fromiter(map(self.slots.get, words, repeat(-1)), np.int64, len(words))
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            slots[missing] = np.arange(len(self.slots), len(self.slots) + len(missing))
            self.add([words[index] for index in missing])
        slots = slots[coded.indices.to_numpy()]
        return self.starts[slots], self.lengths[slots]

    def add(self, words: list[str]) -> None:
        """Encode pieces and cache their ids."""
        assert self.splitting
        self.slots.update(zip(words, range(len(self.slots), len(self.slots) + len(words)), strict=True))
        ids, lengths = encode_pieces(words, self.splitting)
        self.starts = np.concatenate([self.starts, len(self.ids) + offsets_of(lengths)[:-1]])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.ids = np.concatenate([self.ids, ids])
        self.cached_bytes += sum(map(len, words))


def as_strings(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return texts as one array without a null."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], texts.type)
    if texts.null_count:
        raise ValueError(f"{texts.null_count} of {len(texts)} texts are null; drop them before they are encoded")
    return texts


def chunks(texts: pa.Array) -> Iterable[pa.Array]:
    """Yield the texts in runs that fit the processor's cache."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    start = 0
    while start < len(texts):
        most = np.searchsorted(ends, (ends[start - 1] if start else 0) + CHUNK_BYTES, side="right")
        stop = min(max(int(most), start + 1), start + CHUNK_ROWS)
        yield texts.slice(start, stop - start).cast(pa.string())
        start = stop


def joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where runs of these lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def sum_runs(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sums of runs of values, each of so many values."""
    return np.diff(offsets_of(values)[offsets_of(counts)])


def gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return ids[start : start + length] of all starts, one after the other."""
    ends = np.cumsum(lengths)
    places = np.repeat(starts - ends + lengths, lengths)
    places += np.arange(len(places))
    return ids[places]


def spread(mask: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return an array with `inside` where the mask is True and `outside` elsewhere, each in its order."""
    values = np.empty(len(mask), np.int64)
    values[mask], values[~mask] = inside, outside
    return values


def encode_with(library: tokenizers.Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and the lengths of texts."""
    rows = [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def cut_pieces(texts: pa.Array, splitting: Splitting) -> tuple[pa.Array, np.ndarray]:
    """Return the pieces of all texts, none of which is empty, and the number of pieces of each text."""
    if splitting.prefix:
        texts = pc.binary_join_element_wise("", texts, " ")
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    bounds = bounds - bounds[0]
    begins = splitting.cut(text, bounds[:-1])
    begins[bounds[:-1]] = True
    starts = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(starts, bounds))
    ends = np.append(starts, len(text)).astype(np.int32)
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(ends), pa.py_buffer(text)), counts


def encode_pieces(pieces: list[str], splitting: Splitting) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and the lengths of pieces, encoded many at a time."""
    groups = [pieces[start : start + PIECES_AT_ONCE] for start in range(0, len(pieces), PIECES_AT_ONCE)]
    ids, _ = encode_with(splitting.library, [splitting.separator.join(group) for group in groups])
    if splitting.token_bytes is not None:
        wanted = np.cumsum([len(piece.encode()) for piece in pieces])
        ends = np.cumsum(splitting.token_bytes[ids])
        stops = np.searchsorted(ends, wanted)
        if stops[-1] == len(ids) - 1 and (ends[stops] == wanted).all():
            return ids, np.diff(stops, prepend=-1)
    else:
        begins = np.flatnonzero(splitting.opens[ids])
        if len(begins) == len(pieces) and begins[0] == 0:
            return ids, np.diff(begins, append=len(ids))
    return encode_with(splitting.library, pieces)


def splits_at_spaces(library: tokenizers.Tokenizer) -> Splitting | None:
    """Return how the tokenizer's texts come apart, or None where that is not known for certain."""
    if library.truncation or library.padding or library.pre_tokenizer is None:
        return None
    model = library.model
    if isinstance(model, tokenizers.models.BPE):
        if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
            return None
    elif not isinstance(model, tokenizers.models.Unigram):
        return None
    pre_tokenizer = described(library.pre_tokenizer)
    if pre_tokenizer["type"] == "ByteLevel" and pre_tokenizer["use_regex"]:
        return split_byte_level(library, bool(pre_tokenizer["add_prefix_space"]))
    return None


def described(part: Any) -> dict[str, Any]:
    """Return the settings of a normalizer or pre-tokenizer, as in a tokenizer.json."""
    return json.loads(part.__getstate__())


def plain_tokens(library: tokenizers.Tokenizer) -> list[str]:
    """Return the added tokens that texts can spell, as regular expressions."""
    added = library.get_added_tokens_decoder().values()
    return [re.escape(token.content) for token in added if not (token.special and library.encode_special_tokens)]


def split_byte_level(library: tokenizers.Tokenizer, add_prefix_space: bool) -> Splitting | None:
    prepends = False
    if library.normalizer is not None:
        if described(library.normalizer) != {"type": "Prepend", "prepend": " "} or add_prefix_space:
            return None
        prepends = True
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not set(alphabet) <= library.get_vocab(with_added_tokens=False).keys():
        return None
    token_bytes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for token, index in vocabulary.items():
        token_bytes[index] = len(token)  # the alphabet has one character for each byte
    whole = [r"^$", OTHER_SPACES, *plain_tokens(library)]
    pieces = tokenizers.Tokenizer(library.model)
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.CharDelimiterSplit(SEPARATOR),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    if add_prefix_space:
        whole.append(r"^\s")
    return Splitting("|".join(whole), prepends or add_prefix_space, cut_as_gpt2, pieces, SEPARATOR, token_bytes, None)


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


def cut_as_gpt2(text: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Return True where GPT-2's pattern surely begins a new match: a space belongs to what follows it."""
    classes = CLASS_OF_BYTE[text]
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
