"""A model folder, or several, as a model in process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from tfray.checkpoint.folder import open_model_folder
from tfray.config import GenerationConfig
from tfray.config.rules import require
from tfray.errors import InputError
from tfray.inference.inputs import listed_pairs, with_options
from tfray.inference.model import Model
from tfray.inference.quality import compare, require_quality
from tfray.model.precision import prepare_cpu

# The threads that multiply do not come along when a process forks, and who waits for them waits for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def load(
    model_folder: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    device: str | None = None,
    threads: int | None = None,
    pairs: Iterable[tuple[str, str]] = (),
    **options: Any,
) -> Model:
    """Return a model ready to use; several folders with one tokenizer become an ensemble.

    device: default a GPU where there is one; threads: of a CPU, default all cores, for all models of this process
    (one in a process that is forked from it); options: those of GenerationConfig, such as precision="bf16" or
    beam_size=1. pairs: with precision="int8", sources and references on which it may lose most_loss against fp32.

    Raises InputError for a folder that holds no model, folders of different tokenizers, an unknown device or option,
    and for int8 without pairs or with a greater loss.
    """
    names = [model_folder] if isinstance(model_folder, str | os.PathLike) else model_folder
    folders = [open_model_folder(os.fspath(name)) for name in names]
    require(bool(folders), "model_folder", model_folder, "names no folder; give one, or several for an ensemble")
    require(threads is None or threads >= 1, "threads", threads, "must be at least 1")
    chosen, config = choose_device(device), with_options(GenerationConfig(), options)
    if chosen.type == "cpu":
        prepare_cpu(threads or torch.get_num_threads())
    model = Model(folders, config, chosen)
    if config.precision == "int8":
        measured = listed_pairs(pairs)
        if not measured:
            raise InputError("precision='int8' is used only where its loss was measured; give pairs=[(source, target)]")
        require_quality(compare(folders, config, measured), config.most_loss)
    return model


def choose_device(name: str | None) -> torch.device:
    """Return a device by its name; raises InputError where torch has none of that name here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} is not to be had here ({str(error).splitlines()[0]}); use 'cpu'") from error
    return device
