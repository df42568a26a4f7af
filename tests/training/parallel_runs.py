"""Short trainings of a tiny model, the same ones on any number of workers and with either kind of state."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tfray.batches.batch import Batch, collate
from tfray.config import TrainingConfig
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.ragged import Ragged
from tfray.training.parallel import make_state
from tfray.training.state import TrainState
from tfray.training.step import StepMetrics, train_step
from tfray.training.validation import validation_loss
from tfray.training.workers import world_size

LANES, STEPS, RATE = 4, 3, 1e-3
VOCAB = 9  # over four workers, the last has no slice of an embedding of nine rows


PLAIN = TrainingConfig(gradient_clip=0.0, weight_decay=0.1)
EVERYTHING = TrainingConfig(
    gradient_clip=0.5, weight_decay=0.1, ema_decay=0.8, r_drop=0.5, z_loss=1e-3, activation_checkpointing=True
)


@dataclass(frozen=True)
class Setting:
    """What to train, and how."""

    kinds: tuple[str, ...]
    """The kind of state of each step; where it changes, the tensors move over as in a checkpoint."""
    config: TrainingConfig = PLAIN
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    skipped: int | None = None
    """The step that counts as a spike."""
    device: str = "cpu"


SETTINGS = {
    "plain": Setting(("ddp",) * STEPS),
    "everything": Setting(("ddp",) * STEPS, EVERYTHING, dropout=0.3, skipped=1),
    "bf16": Setting(("ddp",) * STEPS, dtype=torch.bfloat16),
}
SETTINGS |= {f"sharded {name}": replace(s, kinds=("fsdp",) * STEPS) for name, s in SETTINGS.items()}
SETTINGS["to sharded"] = replace(SETTINGS["everything"], kinds=("ddp", "ddp", "fsdp"))
SETTINGS["from sharded"] = replace(SETTINGS["everything"], kinds=("fsdp", "fsdp", "ddp"))


class Run(NamedTuple):
    """What came of a training, on one of its workers."""

    steps: list[StepMetrics]
    first: dict[str, Tensor]
    """state.tensors(), gathered, after the first step."""
    tensors: dict[str, Tensor]
    """The same after the last."""
    weights: dict[str, Tensor]
    valid: list[float]
    """A validation loss before, in and after averaged()."""
    kept_elements: int
    """Elements of state.tensors() that this worker holds."""


def run_all(names: tuple[str, ...], device: str = "cpu") -> dict[str, Run]:
    """Return the runs of some settings on this worker."""
    return {name: run(replace(SETTINGS[name], device=device)) for name in names}


def run(setting: Setting) -> Run:
    """Train as a setting says, as one of the workers there are."""
    state, steps, first = None, [], {}
    for step, kind in enumerate(setting.kinds):
        if state is None or kind != setting.kinds[step - 1]:
            state = moved(new_state(setting, kind), state)
        steps.append(take_step(state, setting, step))
        first = first or gathered(state)
    assert state is not None
    before = validate(state, setting.device)
    with state.averaged():
        during = validate(state, setting.device)
    valid = [before, during, validate(state, setting.device)]
    kept = sum(local_part(tensor).numel() for tensor in state.tensors().values())
    return Run(steps, first, gathered(state), state.weights(), valid, kept)


def new_state(setting: Setting, kind: str) -> TrainState:
    """Return an untrained state, the same on every worker."""
    torch.manual_seed(3)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, vocab_size=VOCAB)
    transformer = Transformer(Architecture(**sizes, dropout=setting.dropout))  # type: ignore[arg-type]
    config = replace(setting.config, parallel=kind)
    return make_state(transformer, config, setting.dtype, torch.device(setting.device))


def moved(state: TrainState, source: TrainState | None) -> TrainState:
    """Return a state with another's tensors, by way of plain whole ones."""
    if source is not None:
        whole = gathered(source)
        assert whole.keys() == state.tensors().keys()
        for name, tensor in state.tensors().items():
            tensor.copy_(split_like(whole[name], tensor))
        state.loaded(source.updates)
    return state


def split_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, sliced as another is."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
    return whole


def gathered(state: TrainState) -> dict[str, Tensor]:
    """Return a state's tensors, whole, on the CPU."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", copy=True)
        for name, tensor in state.tensors().items()
    }


def local_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Verdict(NamedTuple):
    """A judge to whom a step is a spike or is not."""

    is_spike: bool

    def judge(self, norm: float, loss: float) -> bool:
        return self.is_spike


def take_step(state: TrainState, setting: Setting, step: int) -> StepMetrics:
    """Train one step on this worker's share of the lanes."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    lanes = range(rank, LANES, world_size())
    batches = [lane_batch(step, lane) for lane in lanes]
    seeds = [step * LANES + lane for lane in lanes]
    state.model.train()
    return train_step(state, batches, seeds, RATE, setting.config, Verdict(step == setting.skipped))


def validate(state: TrainState, device: str) -> float:
    """Return the loss of micro-batches that are not trained on; where there are several workers, only some have one."""
    batch = lane_batch(99, 0)
    empty = batch._replace(label_ids=torch.zeros_like(batch.label_ids))
    rank = dist.get_rank() if dist.is_initialized() else 0
    return validation_loss(state.model, [empty if rank else batch], torch.device(device))


def lane_batch(step: int, lane: int) -> Batch:
    """Return a micro-batch of as many pairs, of as many lengths, as the lane's number makes it."""
    choose = random.Random(step * LANES + lane)
    source, target = (
        [choose.choices(range(3, VOCAB), k=choose.randint(1, 9)) for _ in range(2 + lane)] for _ in range(2)
    )
    return collate(ragged(source), ragged(target))


def ragged(rows: list[list[int]]) -> Ragged:
    lengths = [len(row) for row in rows]
    return Ragged(np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
