"""Validation loss over all workers."""

from __future__ import annotations

import math

import torch
from torch import nn

from tfray.batches.batch import Batch, collate
from tfray.batches.plan import plan_pool
from tfray.batches.pool import read_shards
from tfray.config import BatchesConfig
from tfray.tokens.shards import TokenFolder
from tfray.tokens.special import PAD_ID
from tfray.training.workers import sum_over_workers


def load_validation(tokens: TokenFolder, max_tokens: int, rank: int, workers: int) -> list[Batch]:
    """Return one worker's micro-batches of the validation shards; none where there are no shards.

    All workers get as many, for where the model is sharded they compute them together: what is missing in the last
    round is a micro-batch without labels, which counts nothing.
    """
    if not tokens.has_split("valid"):
        return []
    source, target = pairs = read_shards(tokens.paths("valid"))
    steps = plan_pool(*pairs.lengths, BatchesConfig(max_tokens=max_tokens, lanes=1), epoch=0, pool=0)
    batches = [collate(source.take(rows), target.take(rows)) for (rows,) in steps[rank::workers]]
    if len(batches) < math.ceil(len(steps) / workers):
        ((rows,), *_) = steps
        last = collate(source.take(rows), target.take(rows))
        batches.append(last._replace(label_ids=torch.full_like(last.label_ids, PAD_ID)))
    return batches


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    """Return the negative log-likelihood per target token in nats, the same on every worker."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        loss = model(batch.to(device)).negative_log_likelihood
        totals += torch.tensor([float(loss), batch.target_tokens], dtype=torch.float64)
    model.train()
    likelihood, tokens = sum_over_workers(totals).tolist()
    return likelihood / tokens
