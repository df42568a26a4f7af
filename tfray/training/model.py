"""The Transformer with its loss, so that one forward holds all that a micro-batch computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.attention import avoid_cudnn_attention
from tfray.model.transformer import Transformer
from tfray.training.layers import prepare_layers, wants_compiling
from tfray.training.loss import Loss, smoothed_cross_entropy
from tfray.training.r_drop import side_by_side, twice


class TrainingModel(nn.Module):
    """Computes in the precision of the weights that it finds: who wants bf16 puts bf16 weights in.

    `device` is where it will compute, if that is not where the weights are now.
    """

    def __init__(self, transformer: Transformer, config: TrainingConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.transformer, device = transformer, device or transformer.output_weight.device
        if device.type == "cuda":
            avoid_cudnn_attention()
        self.is_compiled = wants_compiling(config, device)
        prepare_layers(transformer, self.is_compiled, config.activation_checkpointing)
        self.label_smoothing = config.label_smoothing
        self.z_loss = config.z_loss
        self.r_drop = config.r_drop

    def forward(self, batch: Batch) -> Loss:
        """Return the loss sums over the micro-batch's target tokens."""
        if not (self.training and self.r_drop):
            return self.loss(*self.predict(batch))
        rows, labels = (side_by_side(states) for states in self.predict(twice(batch)))
        return Loss(*(value / 2 for value in self.loss(rows, labels, self.r_drop)))

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the hidden states of all target tokens, (tokens, d_model), and their labels."""
        transformer = self.transformer
        # Found first and once: for each use of a mask, backward included, a GPU would finish all that it has to do.
        places = (batch.label_ids != transformer.architecture.pad_id).flatten().nonzero().squeeze(1)
        memory = transformer.encode(batch.source_ids, batch.source_segments)
        hidden = transformer.decode(batch.target_ids, memory, batch.target_segments)
        return hidden.flatten(0, 1)[places], batch.label_ids.flatten()[places]

    def loss(self, rows: Tensor, labels: Tensor, r_drop: float = 0.0) -> Loss:
        """Return the loss sums of hidden states; with r_drop, neighbours are predictions of the same token."""
        weight, terms = self.transformer.output_weight, (self.label_smoothing, self.z_loss, r_drop)
        return smoothed_cross_entropy(rows, weight, labels, *terms, is_compiled=self.is_compiled)
