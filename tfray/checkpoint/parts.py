"""How torch.distributed.checkpoint reads and writes our files: one safetensors part a worker, state.json for all.

DCP makes the plans (who writes what, whether the pieces fill each tensor, which of them a loading worker needs,
and that one worker's error is every worker's); its own formats are not used, for their metadata is pickled.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from dataclasses import replace
from typing import IO, Any, NamedTuple

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from tfray import storage
from tfray.checkpoint.refusal import refusing
from tfray.checkpoint.state import STATE, Part, Piece, Progress, Saved, StoredTensor

CHUNK_BYTES = 4 << 20  # hashed and then written while it is in the cache
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Written(NamedTuple):
    """Where a piece was written."""

    name: str
    part: Part
    start: int


class PartWriter(StorageWriter):
    """Writes a checkpoint into a folder; the first worker publishes it by its state.json."""

    def __init__(self, folder: str, progress: Progress, score: float | None) -> None:
        self.folder, self.progress, self.score = folder, progress, score

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare: folders appear with their first file."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Say that any place will do."""
        return True

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name each worker's part.

        Each attempt has other names: a step that is saved again leaves the files of its whole checkpoint alone
        until the new state.json takes the old one's place.
        """
        attempt = uuid.uuid4().hex[:8]
        names = [f"part-{rank:05d}-of-{len(plans):05d}-{attempt}.safetensors" for rank in range(len(plans))]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this worker's part, hashing it on the way."""
        future: Future[list[WriteResult]] = Future()
        future.set_result(self.write_part(plan, planner) if plan.items else [])
        return future

    def write_part(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Return where each piece of the plan was written."""
        pieces = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        header, starts = safetensors_header(pieces)  # type: ignore[arg-type]
        wanted = len(header) + sum(tensor.nbytes for tensor in pieces.values())  # type: ignore[union-attr]
        name = plan.storage_data
        with refusing(self.folder, wanted), storage.publish(storage.join(self.folder, name)) as file:
            hashed = HashedFile(file)
            hashed.write(memoryview(header))
            for tensor in pieces.values():
                hashed.write(tensor_bytes(tensor))  # type: ignore[arg-type]
        part = Part(hashed.bytes, hashed.digest.hexdigest())
        return [
            WriteResult(item.index, pieces[item.index.fqn].nbytes, Written(name, part, starts[item.index.fqn]))  # type: ignore[union-attr]
            for item in plan.items
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the checkpoint: all parts are there."""
        written = {result.index: result.storage_data for part in results for result in part}
        parts = {place.name: place.part for place in written.values()}
        tensors = {name: stored(name, info, written) for name, info in metadata.state_dict_metadata.items()}  # type: ignore[arg-type]
        saved = Saved(self.progress, self.score, dict(sorted(parts.items())), tensors)
        with refusing(self.folder, 0):
            storage.publish_json(storage.join(self.folder, STATE), saved.to_json())


class HashedFile:
    """Writes to a file what it hashes and counts."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.bytes = file, xxhash.xxh3_128(), 0

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            self.digest.update(chunk)
            self.file.write(chunk)
            self.bytes += len(chunk)


def safetensors_header(tensors: dict[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """Return a safetensors file's header, and where in the file each tensor will start."""
    entries, ends, end = {}, {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        ends[name] = end
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + ends[name] - tensor.nbytes for name, tensor in tensors.items()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU, without a copy."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def stored(name: str, info: TensorStorageMetadata, written: dict[MetadataIndex, Written]) -> StoredTensor:
    """Return where a tensor's pieces were written."""
    pieces = []
    for chunk in info.chunks:
        place = written[MetadataIndex(name, chunk.offsets)]
        pieces.append(Piece(place.name, place.start, list(chunk.offsets), list(chunk.sizes)))
    return StoredTensor(NAMES[info.properties.dtype], list(info.size), pieces)


class PartReader(StorageReader):
    """Reads a checkpoint's pieces; each worker those that it needs."""

    def __init__(self, folder: str, saved: Saved) -> None:
        self.folder, self.saved = folder, saved

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing is kept."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """Say that any place will do."""
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what the checkpoint holds, as DCP's planner wants it."""
        return Metadata({name: described(tensor) for name, tensor in self.saved.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan asks for into the live tensors, part by part, from its start on."""
        wanted: dict[str, list[tuple[Piece, ReadItem]]] = defaultdict(list)
        for item in plan.items:
            tensor = self.saved.tensors[item.storage_index.fqn]
            piece = next(p for p in tensor.pieces if torch.Size(p.offsets) == item.storage_index.offset)
            wanted[piece.part].append((piece, item))
        for name, items in wanted.items():
            path = storage.join(self.folder, name)
            with storage.open_input(path) as file:
                for piece, item in sorted(items, key=lambda pair: pair[0].start):
                    dtype = DTYPES[self.saved.tensors[item.storage_index.fqn].dtype]
                    box = storage.retried(path, lambda: read_box(file, piece, dtype, item))  # noqa: B023
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(box)
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def described(tensor: StoredTensor) -> TensorStorageMetadata:
    """Return a tensor's shape and pieces as DCP has them."""
    chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.shape)) for p in tensor.pieces]
    return TensorStorageMetadata(TensorProperties(dtype=DTYPES[tensor.dtype]), torch.Size(tensor.shape), chunks)


def read_box(file: Any, piece: Piece, dtype: torch.dtype, item: ReadItem) -> Tensor:
    """Return the box of a piece that a plan asks for; only its rows are read."""
    offsets, lengths = list(item.storage_offsets), list(item.lengths)
    rows = list(piece.shape)
    row_bytes = dtype.itemsize
    for size in rows[1:]:
        row_bytes *= size
    first = offsets[0] if rows else 0
    if rows:
        rows[0], offsets[0] = lengths[0], 0
    data = bytearray(row_bytes * (rows[0] if rows else 1))
    file.seek(piece.start + first * row_bytes)
    if file.readinto(data) != len(data):
        raise EOFError(f"{piece.part} ends before its tensors do")
    tensor = torch.frombuffer(data, dtype=dtype).view(rows) if data else torch.empty(rows, dtype=dtype)
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor
