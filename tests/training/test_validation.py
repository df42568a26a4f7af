"""Validation data: all of it, over all workers, with the segmentation of the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID
from tfray.training.validation import load_validation


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_out_every_validation_pair_once(tmp_path: Path, write_tokens, workers: int):
    random = np.random.default_rng(2)
    pairs = [tuple(random.integers(3, 900, random.integers(1, 9)).tolist() for _ in "st") for _ in range(50)]
    tokens = write_tokens(str(tmp_path), [("valid", pairs[:20]), ("valid", pairs[20:])], split="valid")
    found = []
    for rank in range(workers):
        for batch in load_validation(tokens, 60, rank, workers):
            rows = zip(batch.source_ids.tolist(), batch.label_ids.tolist(), strict=True)
            found += [tuple([t for t in ids if t not in (PAD_ID, BOS_ID, EOS_ID)] for ids in row) for row in rows]
    assert sorted(row for row in found if row[1]) == sorted(pairs)


@pytest.mark.parametrize("pairs", [1, 50])
def test_workers_have_equally_many_micro_batches_and_those_that_fill_up_count_nothing(
    tmp_path: Path, write_tokens, pairs: int
):
    tokens = write_tokens(str(tmp_path), [("valid", [([5] * (1 + row % 9), [6]) for row in range(pairs)])], "valid")
    alone = load_validation(tokens, 60, 0, 1)
    shares = [load_validation(tokens, 60, rank, 4) for rank in range(4)]
    assert {len(share) for share in shares} == {-(-len(alone) // 4)}
    assert len(alone) % 4, "one of them has to fill up"
    target_tokens = [batch.target_tokens for share in shares for batch in share]
    assert sum(target_tokens) == sum(batch.target_tokens for batch in alone)
    assert target_tokens.count(0) == sum(map(len, shares)) - len(alone)


def test_without_validation_shards_there_are_no_batches(tmp_path: Path, write_tokens):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])])
    assert load_validation(tokens, 60, 0, 1) == []
