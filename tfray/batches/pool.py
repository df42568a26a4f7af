"""The pairs of a pool: read from the shards, and segmented anew where BPE dropout is on."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfray.batches.mixing import Draw, Portion, corpus_repeats, drawn_rows
from tfray.batches.plan import Pool
from tfray.config import BatchesConfig
from tfray.errors import InputError
from tfray.tokens.check import read_shard
from tfray.tokens.dropout import BpeDropout
from tfray.tokens.ragged import Ragged, offsets_of, with_eos, without_eos
from tfray.tokens.shards import PAIR_COLUMNS, TokenFolder, read_pairs

SOURCE, TARGET = 1, 2
"""Set the seeds of the sides apart."""
MOST_DRAWS = 1_000_000
"""Of shards that an epoch sees several times: the plan holds one for each time, some hundred bytes each."""


class Pairs(NamedTuple):
    """Pairs as the shards hold them: sources end with eos, targets have neither bos nor eos."""

    source: Ragged
    target: Ragged

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that the encoder and the decoder read."""
        return np.diff(self.source.offsets), np.diff(self.target.offsets) + 1


def mix_shards(tokens: TokenFolder, config: BatchesConfig) -> list[Portion]:
    """Return each training shard's part in the mixture; raises InputError where a weight is of no corpus there."""
    shards = tokens.shards("train")
    pairs: Counter[str] = Counter()
    for shard in shards:
        pairs[shard.corpus] += shard.pairs
    weights = dict.fromkeys(pairs, 1.0) | tokens.weights
    for name, weight in config.weights.items():
        if name not in weights:
            raise InputError(
                f"batches.weights.{name}={weight:g} is the weight of no corpus in {tokens.folder!r}; "
                f"there are: {', '.join(sorted(weights))}"
            )
    repeats = corpus_repeats(pairs, weights | config.weights, config.temperature)
    portions = [Portion(shard.pairs, repeats[shard.corpus], shard.corpus) for shard in shards]
    if max(portion.pairs * portion.repeats for portion in portions) < 1:  # an epoch could be empty
        most = max(repeats.values())
        raise InputError(
            f"batches.weights: each pair is seen {most:.2g} times in an epoch at most, which takes less than one "
            "pair of any shard; use larger weights, and fewer epochs"
        )
    often = max(portions, key=lambda portion: portion.repeats)
    if sum(portion.repeats for portion in portions if portion.repeats > 1) > MOST_DRAWS:
        raise InputError(
            f"batches.weights: each pair of {often.corpus!r} is seen {often.repeats:.2g} times in an epoch, which is "
            "more than can be planned; use smaller weights, and more epochs"
        )
    return portions


def check_dropout(tokens: TokenFolder, config: BatchesConfig) -> None:
    """Raise InputError where BPE dropout is on and the tokenizer is not one for it."""
    if config.bpe_dropout:
        BpeDropout(tokens.tokenizer)


class PoolReader:
    """Reads the pairs of pools; what BPE dropout needs is loaded once."""

    def __init__(self, tokens: TokenFolder, config: BatchesConfig) -> None:
        self.paths, self.portions, self.config = tokens.paths("train"), mix_shards(tokens, config), config
        self.sha256 = [shard.sha256 for shard in tokens.shards("train")]
        self.is_verified = np.zeros(len(self.paths), dtype=bool)
        self.drops_targets = tokens.task != "classification"
        if config.bpe_dropout:
            self.dropout = BpeDropout(tokens.tokenizer)
            self.max_length = tokens.max_length

    def read(self, pool: Pool, epoch: int) -> Pairs:
        """Return a pool's pairs, segmented anew where BPE dropout is on."""
        # Shard by shard: of each, no more is kept than what is drawn.
        drawn = [self.read_draw(draw) for draw in pool.draws]
        pairs = Pairs(*(Ragged.concat(list(side)) for side in zip(*drawn, strict=True)))
        return self.resegment(pairs, epoch, pool.index) if self.config.bpe_dropout else pairs

    def read_draw(self, draw: Draw) -> Pairs:
        """Return what is drawn of a shard, with the segmentation that it has there."""
        pairs = pairs_of(self.read_table(draw.shard))
        portion = self.portions[draw.shard]
        if portion.repeats == 1:
            return pairs
        rows = drawn_rows(draw, portion, self.config.seed)
        return Pairs(*(side.take(rows) for side in pairs))

    def read_table(self, shard: int) -> pa.Table:
        """Return a shard's pairs; raises InputError where its bytes are not those that were written."""
        if self.is_verified[shard]:
            return read_pairs([self.paths[shard]])
        data = read_shard(self.paths[shard], self.sha256[shard])
        self.is_verified[shard] = True
        return pq.read_table(pa.BufferReader(data), columns=list(PAIR_COLUMNS))

    def resegment(self, pairs: Pairs, epoch: int, pool: int) -> Pairs:
        """Return the same texts in other tokens; a label is one token and stays."""
        seed = [self.config.seed, epoch, pool]
        source = with_eos(self.drop_merges(without_eos(pairs.source), [*seed, SOURCE]))
        return Pairs(source, self.drop_merges(pairs.target, [*seed, TARGET]) if self.drops_targets else pairs.target)

    def drop_merges(self, rows: Ragged, seed: list[int]) -> Ragged:
        """Return rows segmented by BPE dropout; one that gets too long for the model stays as it is."""
        number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        values, offsets = self.dropout.resegment(rows.values, rows.offsets, self.config.bpe_dropout, number)
        dropped = Ragged(values.astype(rows.values.dtype, copy=False), offsets)
        is_too_long = np.diff(dropped.offsets) >= self.max_length  # bos or eos come on top
        if not is_too_long.any():
            return dropped
        count = len(is_too_long)
        return Ragged.concat([dropped, rows]).take(np.arange(count) + count * is_too_long)


def read_shards(paths: list[str]) -> Pairs:
    """Return all pairs of shards, one shard after the other."""
    return pairs_of(read_pairs(paths))


def pairs_of(table: pa.Table) -> Pairs:
    """Return the pairs of a table of shards."""
    return Pairs(*(ragged(table[name].combine_chunks()) for name in ("source_ids", "target_ids")))


def ragged(lists: pa.ListArray) -> Ragged:
    """Return an array of lists as one buffer with offsets."""
    lengths = pc.list_value_length(lists).to_numpy()  # type: ignore[attr-defined]
    return Ragged(lists.flatten().to_numpy(), offsets_of(lengths))
