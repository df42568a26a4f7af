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
    assert sorted(found) == sorted(pairs)


def test_without_validation_shards_there_are_no_batches(tmp_path: Path, write_tokens):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])])
    assert load_validation(tokens, 60, 0, 1) == []
