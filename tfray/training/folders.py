"""The model folders of a run: best/, last/, average/."""

from __future__ import annotations

import logging
from functools import cached_property

from torch import Tensor

from tfray import storage
from tfray.checkpoint.average import average_checkpoints
from tfray.checkpoint.folder import save_model_folder
from tfray.checkpoint.state import Progress
from tfray.config import TextConfig, TrainJob
from tfray.model.architecture import Architecture
from tfray.tokens.shards import TokenFolder

logger = logging.getLogger(__name__)

AVERAGE = "average"


class ModelFolders:
    """Writes them; rank 0 does, for all workers."""

    def __init__(self, job: TrainJob, tokens: TokenFolder, architecture: Architecture) -> None:
        self.job, self.tokens, self.architecture = job, tokens, architecture

    @cached_property
    def tokenizer_json(self) -> str:
        return self.tokens.tokenizer.json

    def write(self, name: str, weights: dict[str, Tensor], progress: Progress, step: int | None = None) -> None:
        """Write the weights of a step, by default of the newest."""
        made = {
            "step": progress.step if step is None else step,
            f"best validation {self.job.training.best_metric}": progress.best_score,
            "tokens": self.tokens.fingerprint,
        }
        text = TextConfig(**self.tokens.manifest["made_from"].get("corpus", {}).get("text", {}))
        save_model_folder(
            storage.join(self.job.out, name),
            weights,
            self.architecture,
            self.tokenizer_json,
            self.tokens.task,
            made,
            text,
        )

    def write_last(self, weights: dict[str, Tensor], progress: Progress) -> None:
        """Write what comes of the end of training: its newest weights, and an average where one is wanted."""
        if not progress.best_step:
            logger.warning("no validation has found a %s: best/ is last/", self.job.training.best_metric)
            self.write("best", weights, progress)
        self.write("last", weights, progress)
        self.write_average(progress)

    def write_average(self, progress: Progress) -> None:
        """Write the mean of the last checkpoints, or of the best, where it is wanted."""
        config = self.job.training
        if config.average_checkpoints:
            weights = average_checkpoints(
                self.job.out,
                config.average_checkpoints,
                of_best=config.keep_best_checkpoints > 0,
                every=config.checkpoint_every,
            )
            self.write(AVERAGE, weights, progress)
