"""Ragged id lists -> padded tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tfray.batches.lengths import padded_length
from tfray.tokens.ragged import Ragged
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


class Batch(NamedTuple):
    """One micro-batch; padded with pad at the right."""

    source_ids: Tensor  # (batch, source); ends with eos
    target_ids: Tensor  # (batch, target); begins with bos
    label_ids: Tensor  # (batch, target); ends with eos
    source_segments: Tensor | None = None  # (batch, source): where rows are packed, which pair of its row a token is
    target_segments: Tensor | None = None  # of, from 1; 0 is padding

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with all its tensors changed."""
        return Batch(*(None if tensor is None else change(tensor) for tensor in self))  # type: ignore[arg-type]

    @property
    def source_tokens(self) -> int:
        return int((self.source_ids != PAD_ID).sum())

    @property
    def target_tokens(self) -> int:
        return int((self.label_ids != PAD_ID).sum())

    @property
    def padded_tokens(self) -> int:
        """Positions on both sides, padding included."""
        return self.source_ids.numel() + self.target_ids.numel()


def collate(source: Ragged, target: Ragged) -> Batch:
    """Return a micro-batch of pairs; source rows end with eos, target rows have neither bos nor eos."""
    lengths = np.diff(target.offsets)
    width = padded_length(int(lengths.max()) + 1)
    labels = pad(target, width)
    labels[np.arange(len(lengths)), lengths] = EOS_ID
    begins = np.full((len(lengths), 1), BOS_ID)
    targets = np.concatenate([begins, pad(target, width - 1)], axis=1)
    return Batch(
        torch.from_numpy(pad(source, padded_length(int(np.diff(source.offsets).max())))),
        torch.from_numpy(targets),
        torch.from_numpy(labels),
    )


def pad(ragged: Ragged, width: int) -> np.ndarray:
    """Return rows padded to a width, (rows, width) of int64."""
    lengths = np.diff(ragged.offsets)
    padded = np.full((len(lengths), width), PAD_ID, dtype=np.int64)
    padded[np.arange(width) < lengths[:, None]] = ragged.values
    return padded
