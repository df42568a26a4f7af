"""What the places in the data order count: where it changes, a place is no longer what it was."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

from tfray import storage
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder

WITHIN_POOLS = ("max_tokens", "lanes", "packing", "bpe_dropout")
"""Settings by which pools are cut into steps; by the others, and the shards, an epoch is cut into pools."""

Order = dict[str, str]
"""Fingerprints of what an epoch's pools follow from, and a pool's steps."""


class Cursor(NamedTuple):
    """A place in the data order: the next step to train on."""

    epoch: int = 0
    pool: int = 0
    step: int = 0
    """Step within the pool."""


def order_of(tokens: TokenFolder, config: BatchesConfig) -> Order:
    """Return what tells the data order of these tokens and settings apart from others."""
    settings = asdict(config)
    within = {name: settings.pop(name) for name in WITHIN_POOLS}
    shards = [(shard.name, shard.pairs, shard.corpus, shard.sha256) for shard in tokens.shards("train")]
    return {
        "pools": storage.fingerprint([shards, {name: float(w) for name, w in tokens.weights.items()}, settings]),
        "steps": storage.fingerprint(within),
    }


def place_again(cursor: Cursor, before: Order, now: Order) -> Cursor:
    """Return where to go on when the order has changed: at the beginning of the pool, or of the epoch, that was begun,
    since nothing of it may be left out."""
    if before.get("pools") != now["pools"]:
        return Cursor(cursor.epoch)
    return cursor if before.get("steps") == now["steps"] else Cursor(cursor.epoch, cursor.pool)
