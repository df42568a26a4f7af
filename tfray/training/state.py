"""What a step changes: a model with its optimizer and moving average, on one worker of several."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager

from torch import Tensor

from tfray.batches.batch import Batch
from tfray.training.loss import Loss
from tfray.training.model import TrainingModel


class TrainState(abc.ABC):
    """A step is accumulate() for each micro-batch, reduce(), and update() or discard()."""

    model: TrainingModel
    """forward(batch) -> Loss, in the precision of training."""
    updates: int
    """Updates done: Adam's count."""

    @abc.abstractmethod
    def accumulate(self, batch: Batch, scale: float, is_last: bool) -> Loss:
        """Add the gradient of scale * objective to this worker's sum; return the detached loss sums.

        `is_last` says that it is this worker's last micro-batch of the step, so that the gradients can be sent
        while they are made.
        """

    @abc.abstractmethod
    def reduce(self) -> float:
        """Sum the gradients over all workers, once a step; return their L2 norm, finite or not."""

    @abc.abstractmethod
    def update(self, rate: float, shrink: float) -> None:
        """Take an AdamW step with the gradients times `shrink`, and move the average."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Drop the gradients of a step that is not to count."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all that training resumes from, live and fp32, as weight.NAME, exp_avg.NAME, exp_avg_sq.NAME and
        average.NAME, NAME being the Transformer's own."""

    @abc.abstractmethod
    def loaded(self, updates: int) -> None:
        """Go on from tensors() that were overwritten in place, after so many updates."""

    @abc.abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Compute with the moving average, if there is one, in place of the weights for the block."""

    @abc.abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return the Transformer's state_dict in fp32 on the CPU, the averaged one if there is an average."""
