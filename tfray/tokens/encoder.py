"""Ids of many texts at once, the library's own, through a bounded cache of the pieces that texts are made of.

    "It's 20 dogs."  ->  " It's" | " 20" | " dogs" | "."  ->  distinct pieces  ->  cache, or the library  ->  ids

A tokenizer's model never sees more than one piece of its pre-tokenizer, so a text's ids are those of
its pieces, one after the other. NumPy finds cuts that the pre-tokenizer is sure to make too (it may
make more of them: a piece is encoded by the library, pre-tokenizer and all). Natural text repeats its
pieces, so nearly all of them are looked up and not encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import tokenizers

from tfray.tokens.ragged import gather, offsets_of, sum_runs
from tfray.tokens.splitting import Splitting, splits_at_spaces
from tfray.tokens.tokenizer import Tokenizer

pc: Any = pyarrow.compute  # its functions are made at run time

CHUNK_ROWS, CHUNK_BYTES = 16_384, 1 << 20
PIECES_AT_ONCE = 64
MOST_CACHED_BYTES = 1 << 25


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
    """Return texts as one array of strings without a null."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        raise ValueError(f"{texts.null_count} of {len(texts)} texts are null; drop them before they are encoded")
    return texts.cast(pa.large_string())


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
    if len(splitting.token_bytes):
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
