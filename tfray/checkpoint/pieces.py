"""Which part of which tensor a worker writes, and the CPU buffers in which it waits to be written."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from tfray.checkpoint.group import Group


class Staged(NamedTuple):
    """A worker's box of a tensor."""

    data: Tensor
    offsets: torch.Size
    shape: torch.Size
    """Of the whole tensor."""


class Staging:
    """CPU buffers, filled at each save and kept for the next: memory is neither asked for nor faulted in again."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def fill(self, tensors: dict[str, Tensor], group: Group) -> dict[str, Staged]:
        """Return copies of what this worker is to write; the tensors may change afterwards."""
        own = own_pieces(tensors, group)
        copies = {name: staged._replace(data=self.copy(name, staged.data)) for name, staged in own.items()}
        if any(staged.data.is_cuda for staged in own.values()):
            torch.cuda.current_stream().synchronize()
        return copies

    def copy(self, name: str, data: Tensor) -> Tensor:
        """Return a tensor's copy in its buffer; from a GPU it is complete when the stream is."""
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape != data.shape or buffer.dtype != data.dtype:
            buffer = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
            self.buffers[name] = buffer
        return buffer.copy_(data, non_blocking=True)


def own_pieces(tensors: dict[str, Tensor], group: Group) -> dict[str, Staged]:
    """Return what this worker writes: its share of the replicated tensors, and its shards of the others."""
    replicated = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
    pieces = {}
    for name in share_out({name: tensor.nbytes for name, tensor in replicated.items()}, group.workers)[group.rank]:
        tensor = replicated[name].detach()
        pieces[name] = Staged(tensor, torch.Size([0] * tensor.dim()), tensor.shape)
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local = tensor.to_local().detach()
            if local.numel() or not tensor.numel():  # a worker's shard of a short tensor is empty
                (chunk,) = tensor.__create_chunk_list__()  # type: ignore[attr-defined]
                pieces[name] = Staged(local, chunk.offsets, tensor.shape)
    return pieces


def share_out(sizes: dict[str, int], workers: int) -> list[list[str]]:
    """Return each worker's names, so that all have about as many bytes; the same on every worker."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        shares[lightest].append(name)
        loads[lightest] += sizes[name]
    return shares


class StagedPlanner(DefaultSavePlanner):
    """Plans to write what is staged, in place of looking for it in a state dict."""

    def __init__(self, staged: dict[str, Staged]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.staged = staged

    def create_local_plan(self) -> SavePlan:
        """Return this worker's plan, widest types first, as safetensors has them."""
        order = sorted(self.staged, key=lambda name: (-self.staged[name].data.itemsize, name))
        self.plan = SavePlan([write_item(name, self.staged[name]) for name in order])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Return a tensor's staged piece."""
        return self.staged[index.fqn].data


def write_item(name: str, staged: Staged) -> WriteItem:
    """Return the plan for one piece."""
    chunk = ChunkStorageMetadata(staged.offsets, staged.data.shape)
    described = TensorWriteData(chunk, TensorProperties(dtype=staged.data.dtype), staged.shape)
    return WriteItem(MetadataIndex(name, staged.offsets), WriteItemType.SHARD, tensor_data=described)
