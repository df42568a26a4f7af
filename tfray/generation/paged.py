"""The cache of the compiled kernels: targets stand on pages, which a row takes as it grows and gives back at its end.

A long row costs the others nothing, and no target's keys and values are ever copied. A page has some positions of all
layers, (layers, 2, heads, positions x width x head_dim); which of a position's keys are a hypothesis' ancestors is a
table of numbers.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tfray.generation import native
from tfray.generation.cache import CacheShape, SlotCache
from tfray.native import Argument

CHUNK_SHARE = 4  # of the slots: as many pages are asked of the system at a time


def in_blocks(keys: Tensor) -> Tensor:
    """Return keys (rows, heads, positions, head_dim) as the kernels want them, the positions of a block side by side:
    (rows, heads, blocks, head_dim, lanes)."""
    return keys.unflatten(2, (-1, native.lanes())).transpose(3, 4).contiguous()


class Pages:
    """Memory in pages of one size, known by their addresses."""

    def __init__(self, numbers: int, dtype: torch.dtype, at_a_time: int) -> None:
        self.numbers, self.dtype, self.at_a_time = numbers, dtype, at_a_time
        self.chunks: list[Tensor] = []
        self.free: list[int] = []

    def take(self) -> int:
        """Return a page's address; what stands there is what was left there."""
        if not self.free:
            chunk = torch.empty(self.at_a_time, self.numbers, dtype=self.dtype, device="cpu")
            self.chunks.append(chunk)
            size = self.numbers * chunk.element_size()
            self.free = [chunk.data_ptr() + number * size for number in reversed(range(self.at_a_time))]
        return self.free.pop()


class PagedCache(SlotCache):
    """The cache for the kernels, in fp32 or halves."""

    def __init__(self, shape: CacheShape, like: Tensor, kernels: ctypes.CDLL) -> None:
        super().__init__(shape, like)
        halves = like.dtype == torch.bfloat16
        self.kernel_of_past = kernels.attend_past_half if halves else kernels.attend_past
        self.kernel_of_memory = kernels.attend_memory_half if halves else kernels.attend_memory
        self.kernel_of_keeping = kernels.keep_memory_half if halves else kernels.keep_memory
        self.memory_lengths = torch.ones(shape.slots, dtype=torch.long, device=like.device)
        self.page = native.page()
        numbers = 2 * shape.layers * shape.heads * self.page * shape.width * shape.head_dim
        self.pages = Pages(numbers, like.dtype, -(-shape.slots // CHUNK_SHARE))
        self.pages_of: list[list[int]] = [[] for _ in range(shape.slots)]
        self.table = self.memory_lengths.new_zeros(shape.slots, -(-shape.target // self.page))
        """The same addresses as pages_of."""
        places = self.table.shape[1] * self.page
        self.ancestors = self.table.new_zeros(shape.slots, shape.width, places, dtype=torch.int32)

    def keep(self, slots: list[int], keys_values: list[Tensor], index: Tensor, lengths: Tensor) -> None:
        """Store keys and values of sources; the kernels look at no more than their lengths."""
        layers, _, *shape = self.memory_buffer.shape
        for slot, part in zip(slots, keys_values, strict=True):
            parts = part.contiguous(), self.memory_buffer
            native.call(self.kernel_of_keeping, *parts, slot, len(part), layers, *shape)
        self.memory_lengths[index] = lengths

    def release(self, slots: list[int]) -> None:
        """Let others have the pages of rows that are done."""
        for slot in slots:
            self.pages.free += self.pages_of[slot]
            self.pages_of[slot] = []

    def start_step(self, rows: int) -> None:
        """Prepare for the next token of the first `rows` rows: each has a page for it."""
        super().start_step(rows)
        for slot, steps in enumerate(self.steps_taken[:rows]):
            own = self.pages_of[slot]
            if steps == self.page * len(own):
                own.append(self.pages.take())
                self.table[slot, len(own) - 1] = own[-1]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What both of attention's kernels are told beside the rows: hypotheses of each, heads, and a head's size."""
        return self.shape.width, self.shape.heads, self.shape.head_dim

    def past_arguments(self, layer: int, joint: Tensor, output: Tensor, rows: Argument) -> list[Argument]:
        """Return what the kernel of attention to the past is called with."""
        parts = joint, self.table, self.ancestors, self.positions, output
        return [*parts, layer, rows, *self.sizes, self.table.shape[1]]

    def memory_arguments(self, layer: int, queries: Tensor, output: Tensor, rows: Argument) -> list[Argument]:
        """Return what the kernel of attention to the source is called with."""
        parts = queries, *self.memory_buffer[layer], self.memory_lengths, output
        return [*parts, rows, *self.sizes, self.memory_buffer.shape[4]]

    def attend_past(self, layer: int, joint: Tensor) -> Tensor:
        """Store the newest keys and values and return what its queries gather."""
        output = joint.new_empty(len(joint), joint.shape[1] // 3)
        native.call(self.kernel_of_past, *self.past_arguments(layer, joint, output, self.rows))
        return output

    def attend_memory(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries gather of the source, and no weights."""
        output = torch.empty_like(queries)
        native.call(self.kernel_of_memory, *self.memory_arguments(layer, queries, output, self.rows))
        return output, queries.new_empty(0)

    def follow(self, parents: Tensor) -> None:
        """Give each hypothesis the ancestors of its parent, (rows, width)."""
        lines = self.ancestors[: self.rows, :, : self.length]
        lines.copy_(lines.gather(1, parents[..., None].expand_as(lines)))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows to other slots; the pages stay where they are."""
        super().move(sources, targets)
        self.memory_lengths[targets] = self.memory_lengths[sources]
        self.ancestors[targets] = self.ancestors[sources]
        self.table[targets] = self.table[sources]
        for source, target in zip(sources, targets, strict=True):
            self.pages_of[target], self.pages_of[source] = self.pages_of[source], []
