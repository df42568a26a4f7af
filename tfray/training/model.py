"""The Transformer with its loss, so that one forward holds all that a micro-batch computes."""

from __future__ import annotations

from torch import nn

from tfray.batches.batch import Batch
from tfray.config import TrainingConfig
from tfray.model.transformer import Transformer
from tfray.training.loss import Loss, smoothed_cross_entropy


class TrainingModel(nn.Module):
    """Computes in the precision of the weights that it finds: who wants bf16 puts bf16 weights in."""

    def __init__(self, transformer: Transformer, config: TrainingConfig) -> None:
        super().__init__()
        self.transformer = transformer
        self.label_smoothing = config.label_smoothing
        self.z_loss = config.z_loss
        if config.compile == "yes" or (config.compile == "auto" and transformer.output_weight.is_cuda):
            # Layer by layer: all of a kind share one compiled code, and what surrounds them stays as it is.
            for layer in (*transformer.encoder, *transformer.decoder):
                layer.compile(dynamic=True)

    def forward(self, batch: Batch) -> Loss:
        """Return the loss sums over the micro-batch's target tokens."""
        transformer = self.transformer
        hidden = transformer.decode(batch.target_ids, transformer.encode(batch.source_ids))
        is_token = batch.label_ids != transformer.architecture.pad_id
        rows, labels = hidden[is_token], batch.label_ids[is_token]
        return smoothed_cross_entropy(rows, transformer.output_weight, labels, self.label_smoothing, self.z_loss)
