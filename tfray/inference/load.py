"""A model folder, or several, as a model in process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tfray.checkpoint.folder import open_model_folder
from tfray.config import GenerationConfig
from tfray.errors import InputError
from tfray.inference.model import Model
from tfray.inference.quality import compare, require_quality
from tfray.model.precision import prepare_cpu


def load(
    model_folder: str | Sequence[str],
    *,
    device: str | None = None,
    threads: int | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    **options: Any,
) -> Model:
    """Return a model ready to use; several folders with one tokenizer become an ensemble.

    device: default a GPU where there is one; threads: of a CPU, default all cores; options: those of
    GenerationConfig, such as precision="bf16" or beam_size=1. pairs: with precision="int8", sources and references
    on which it may lose most_loss against fp32.
    """
    names = [model_folder] if isinstance(model_folder, str) else list(model_folder)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cpu":
        prepare_cpu(threads or torch.get_num_threads())
    folders, config = [open_model_folder(name) for name in names], GenerationConfig(**options)
    model = Model(folders, config, chosen)
    if config.precision == "int8":
        if not pairs:
            raise InputError("precision='int8' is used only where its loss was measured; give pairs=[(source, target)]")
        require_quality(compare(folders, config, pairs), config.most_loss)
    return model
