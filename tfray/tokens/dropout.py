"""BPE-dropout (Provilkov et al. 2020): the same text in other tokens, for training.

Segmenting skips each possible merge with some probability at each step, so that a word falls into more
and other pieces than usual. All randomness is a hash of the seed, the word and the place in it: the result
depends on the arguments alone, so a resumed training sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import pre_tokenizers

from tfray.corpus.hashing import mix
from tfray.errors import InputError
from tfray.tokens.ragged import gather, offsets_of, sum_runs
from tfray.tokens.splitting import flat
from tfray.tokens.tokenizer import Tokenizer

VARIANTS = 8  # segmentations of one word in one call; its occurrences choose among them
MOST_WORDS = 1 << 17  # kept with their bytes between calls; about 100 MB
NO_MERGE = np.iinfo(np.int32).max


class Word(NamedTuple):
    """What a word is segmented from: runs of single-byte ids between which no merge happens."""

    ids: np.ndarray
    lengths: np.ndarray
    """Of the runs."""
    key: int


class BpeDropout:
    """Segments rows of ids anew; holds the merges of a byte-level BPE tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        library, description = tokenizer.library, json.loads(tokenizer.json)
        model, alphabet = library.model, bytes_of_alphabet()
        vocabulary = library.get_vocab(with_added_tokens=True)
        is_byte_level = [part["type"] for part in flat(description["pre_tokenizer"])][-1:] == ["ByteLevel"]
        marks = isinstance(model, tokenizers.models.BPE) and (
            model.continuing_subword_prefix or model.end_of_word_suffix
        )
        if not (isinstance(model, tokenizers.models.BPE) and is_byte_level and alphabet.keys() <= vocabulary.keys()):
            raise InputError("batches.bpe_dropout needs a byte-level BPE tokenizer, and this is another; set it to 0")
        if marks:
            raise InputError("batches.bpe_dropout needs a BPE tokenizer without marks of word parts; set it to 0")
        size = max(vocabulary.values()) + 1
        added = library.get_added_tokens_decoder()
        self.pre_tokenizer = own_pre_tokenizer(library)
        self.is_added = np.zeros(size, bool)
        self.is_added[list(added)] = True
        self.opens = np.zeros(size, bool)
        self.text_of_id = [b""] * size
        for token, index in vocabulary.items():
            if index not in added:
                self.opens[index] = token.startswith("Ġ")
                self.text_of_id[index] = bytes(alphabet[character] for character in token)
        self.id_of_byte = np.zeros(256, np.int32)
        self.id_of_byte[list(alphabet.values())] = [vocabulary[character] for character in alphabet]
        self.alphabet = alphabet
        self.merges = Merges(description["model"]["merges"], vocabulary)
        self.words: dict[bytes, Word] = {}

    def resegment(
        self, values: np.ndarray, offsets: np.ndarray, rate: float, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of ids (int32, int64 offsets) of the same texts, each merge skipped with probability rate.

        Special and label tokens stay as they are.
        """
        values, offsets = np.ascontiguousarray(values, np.int32), np.asarray(offsets, np.int64)
        if rate == 0 or not len(values):
            return values, offsets
        starts = np.flatnonzero(self.word_begins(values, offsets))
        words = runs_as_bytes(values, starts).dictionary_encode()
        texts = words.dictionary.to_pylist()
        variant = mix(np.uint64(seed % 2**64), np.arange(len(starts), dtype=np.uint64)) % np.uint64(VARIANTS)
        chosen = words.indices.to_numpy().astype(np.int64) * VARIANTS + variant.astype(np.int64)
        wanted, places = np.unique(chosen, return_inverse=True)
        ids, lengths = self.segment(texts, wanted, rate, seed)
        values = gather(ids, offsets_of(lengths)[:-1][places], lengths[places])
        counts = np.diff(np.searchsorted(starts, offsets))
        return values, offsets_of(sum_runs(lengths[places], counts))

    def word_begins(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return True where a word, a row or an added token begins, and after an added token."""
        begins = self.opens[values] | self.is_added[values]
        begins[1:] |= self.is_added[values[:-1]]
        begins[offsets[:-1][np.diff(offsets) > 0]] = True
        return begins

    def segment(self, words: list[bytes], wanted: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and lengths of wanted segmentations, each given as word x VARIANTS + variant."""
        if len(self.words) > MOST_WORDS:
            self.words.clear()
        found = [self.word(words[index]) for index in wanted // VARIANTS]
        counts = np.array([len(word.lengths) for word in found])
        lengths = np.concatenate([word.lengths for word in found])
        keys = np.array([word.key for word in found], np.uint64)
        keys = mix(mix(np.uint64(seed % 2**64), keys), (wanted % VARIANTS).astype(np.uint64))
        inside = np.arange(len(lengths)) - np.repeat(offsets_of(counts)[:-1], counts)  # number of the run in its word
        keys = mix(np.repeat(keys, counts), inside.astype(np.uint64))
        ids, lengths = self.merges.apply(np.concatenate([word.ids for word in found]), lengths, keys, rate)
        return ids, sum_runs(lengths, counts)

    def word(self, ids: bytes) -> Word:
        """Return what a word, given as its ids, is segmented from."""
        word = self.words.get(ids)
        if word is None:
            word = self.words[ids] = self.make_word(np.frombuffer(ids, np.int32))
        return word

    def make_word(self, ids: np.ndarray) -> Word:
        text = b"".join(self.text_of_id[index] for index in ids)
        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        if self.is_added[ids[0]]:
            return Word(ids, np.ones(1, np.int64), key)
        try:
            parts = [part for part, _ in self.pre_tokenizer.pre_tokenize_str(text.decode())]
            lengths = np.array([len(part) for part in parts])
            same = bytes(self.alphabet[character] for part in parts for character in part) == text
        except UnicodeDecodeError:  # ids that a model made up, or a cut text
            same, lengths = False, np.empty(0)
        if not same:
            lengths = np.array([len(text)])
        return Word(self.id_of_byte[np.frombuffer(text, np.uint8)], lengths, key)


class Merges:
    """The merges of a BPE tokenizer, by pairs of ids."""

    def __init__(self, merges: list[str] | list[list[str]], vocabulary: dict[str, int]) -> None:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        left, right, self.result = (
            np.array([vocabulary[token] for token in tokens], np.int64)
            for tokens in (
                [pair[0] for pair in pairs],
                [pair[1] for pair in pairs],
                ["".join(pair) for pair in pairs],
            )
        )
        self.size = max(vocabulary.values()) + 1
        keys = left * self.size + right
        self.rank = np.argsort(keys, kind="stable").astype(np.int32)
        self.keys = np.append(keys[self.rank], np.iinfo(np.int64).max)
        self.rank = np.append(self.rank, np.int32(NO_MERGE))

    def ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the rank of merging each pair; NO_MERGE where there is none, or an id is negative."""
        keys = left.astype(np.int64) * self.size + right
        places = np.searchsorted(self.keys, keys)
        fits = (self.keys[places] == keys) & (left >= 0) & (right >= 0)
        return np.where(fits, self.rank[places], NO_MERGE).astype(np.int32)

    def apply(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray, rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and lengths of runs after merging, with each run's key as its seed."""
        starts = offsets_of(lengths)[:-1]
        merged, merged_lengths = np.empty_like(ids), lengths.copy()
        width = 1 << np.ceil(np.log2(np.maximum(lengths, 2))).astype(np.int64)  # alike lengths together, padded by -1
        for size in np.unique(width):
            for rows in np.array_split(np.flatnonzero(width == size), max(1, (width == size).sum() * size >> 18)):
                inside = np.arange(size) < lengths[rows, None]
                block = np.full(inside.shape, -1, np.int32)
                block[inside] = gather(ids, starts[rows], lengths[rows])
                self.apply_block(block, keys[rows], rate)
                kept = block >= 0
                merged_lengths[rows] = kept.sum(axis=1)
                places = starts[rows, None] + np.arange(size)
                merged[places[kept]] = block[kept]  # not after the place that the run had before
        return gather(merged, starts, merged_lengths), merged_lengths

    def apply_block(self, block: np.ndarray, keys: np.ndarray, rate: float) -> None:
        """Merge each row of a block (runs, bytes) in place: at each step the best pair of those not skipped."""
        rows = np.arange(len(block))
        ids = block
        ranks = self.ranks(ids[:, :-1], ids[:, 1:])
        columns = np.arange(block.shape[1], dtype=np.uint64)
        skipped = np.uint64(min(int(rate * 2**64), 2**64 - 1))
        for step in range(block.shape[1]):
            draws = mix(mix(keys, np.uint64(step))[:, None], columns[None, :-1])
            open_ranks = np.where(draws >= skipped, ranks, NO_MERGE)
            best = open_ranks.argmin(axis=1)
            rank = np.take_along_axis(open_ranks, best[:, None], axis=1)[:, 0]
            going = rank != NO_MERGE
            block[rows[~going]] = ids[~going]
            rows, ids, ranks, keys, best, rank = (x[going] for x in (rows, ids, ranks, keys, best, rank))
            if not len(rows):
                return
            ids, ranks = without(ids, best + 1, -1), without(ranks, best, NO_MERGE)
            line = np.arange(len(rows))
            ids[line, best] = self.result[rank]
            after = np.minimum(best + 1, ids.shape[1] - 1)
            ranks[line, np.minimum(best, ranks.shape[1] - 1)] = self.ranks(ids[line, best], ids[line, after])
            before = line[best > 0], best[best > 0] - 1
            ranks[before] = self.ranks(ids[before], ids[before[0], before[1] + 1])
        block[rows] = ids


def without(matrix: np.ndarray, columns: np.ndarray, filler: int) -> np.ndarray:
    """Return rows without one column each, with a filler at their ends."""
    places = np.arange(matrix.shape[1])
    places = places + (places >= columns[:, None])
    padded = np.concatenate([matrix, np.full((len(matrix), 1), filler, matrix.dtype)], axis=1)
    return np.take_along_axis(padded, places, axis=1)


def runs_as_bytes(values: np.ndarray, starts: np.ndarray) -> pa.Array:
    """Return runs of int32 ids as binary values."""
    bounds = (np.append(starts, len(values)) * 4).astype(np.int64)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts), [None, pa.py_buffer(bounds), pa.py_buffer(values)]
    )


def bytes_of_alphabet() -> dict[str, int]:
    """Return the byte that each character of the byte-level alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def own_pre_tokenizer(library: tokenizers.Tokenizer) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer, without the space that it may put in front of a text."""
    pre_tokenizer = library.pre_tokenizer
    if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer.use_regex)
    return pre_tokenizer
