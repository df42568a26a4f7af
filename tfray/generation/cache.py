"""What decoding keeps of each row: keys and values of its source once, and of its hypotheses' tokens.

A row has a slot; the slots in use are the first ones. A row's tokens stand at their own positions, so a row
that enters late has its keys where it would have them alone, and sums over them are the same to the last bit.

All hypotheses of a row write into one list of keys, (position, hypothesis), and none is ever copied: which of them
are a hypothesis' ancestors is known.

    width 2, after 3 tokens      p0h0 p0h1 p1h0 p1h1 p2h0 p2h1
    hypothesis 0 sees              x         x         x            0 <- 0 <- 0
    hypothesis 1 sees              x         x              x       1 <- 0 <- 0

Here are what caches have in common, and the one for torch's products; `paged` has that of the compiled kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from tfray.generation.attention import attend

FIRST_LENGTH = 32  # positions; doubled when a row outgrows it
# Lengths are rounded up: fewer shapes, and kernels that sum alike whatever the length (below 16 keys,
# products and softmax take other ways, with other last bits).
PAD_TO = 16


def round_up(length: int) -> int:
    """Return a length rounded up to a multiple of PAD_TO."""
    return -(-length // PAD_TO) * PAD_TO


class CacheShape(NamedTuple):
    """What there is room for."""

    slots: int
    width: int
    """Hypotheses of a row."""
    source: int
    """The longest source's tokens."""
    target: int
    """The longest target's tokens, eos counted."""
    layers: int
    heads: int
    head_dim: int


class SlotCache(ABC):
    """Keys and values of the rows in slots, for one model."""

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        self.shape, self.like = shape, like
        self.memory_buffer = like.new_zeros(
            shape.layers, 2, shape.slots, shape.heads, round_up(shape.source), shape.head_dim
        )
        self.positions = torch.zeros(shape.slots, dtype=torch.long, device=like.device)
        self.source_lengths = [0] * shape.slots
        self.steps_taken = [0] * shape.slots
        """The same as positions, at hand without asking the device."""
        self.rows = self.length = self.source = 0

    def admit(self, slots: list[int], keys_values: list[Tensor]) -> None:
        """Give rows these slots; keys_values: a row's (source, layers, 2, heads, head_dim) each."""
        index = torch.tensor(slots, device=self.like.device)
        lengths = [len(part) for part in keys_values]
        self.keep(slots, keys_values, index, torch.tensor(lengths, device=self.like.device))
        self.positions[index] = 0
        for slot, length in zip(slots, lengths, strict=True):
            self.source_lengths[slot], self.steps_taken[slot] = length, 0

    @abstractmethod
    def release(self, slots: list[int]) -> None:
        """Let others have what the rows in these slots, which are done, had for themselves."""

    @abstractmethod
    def keep(self, slots: list[int], keys_values: list[Tensor], index: Tensor, lengths: Tensor) -> None:
        """Store keys and values of sources; index: the slots once more, lengths: of the sources."""

    def start_step(self, rows: int) -> None:
        """Prepare for the next token of the first `rows` rows: every hypothesis will see its own."""
        self.rows = rows
        self.length = round_up(max(self.steps_taken[:rows]) + 1)
        self.source = round_up(max(self.source_lengths[:rows]))

    @abstractmethod
    def attend_past(self, layer: int, joint: Tensor) -> Tensor:
        """Store the newest keys and values and return what its queries gather; joint: (rows x width, 3 x d_model),
        output: (rows x width, d_model)."""

    @abstractmethod
    def attend_memory(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries gather of the source, (rows x width, d_model) each, and their weights (rows, heads,
        width, source), empty where they are not kept."""

    def end_step(self, parents: Tensor | None) -> None:
        """Let hypothesis (row, i) go on from (row, parents[row, i]); None: each from itself."""
        if parents is not None:
            self.follow(parents)
        self.positions[: self.rows] += 1
        self.steps_taken[: self.rows] = [steps + 1 for steps in self.steps_taken[: self.rows]]

    @abstractmethod
    def follow(self, parents: Tensor) -> None:
        """Give each hypothesis the ancestors of its parent, (rows, width)."""

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows to other slots."""
        self.memory_buffer[:, :, targets] = self.memory_buffer[:, :, sources]
        self.positions[targets] = self.positions[sources]
        for old, new in zip(sources, targets, strict=True):
            self.source_lengths[new] = self.source_lengths[old]
            self.steps_taken[new] = self.steps_taken[old]


class TensorCache(SlotCache):
    """The cache for torch's products: a `bias` hides what a hypothesis does not see."""

    def __init__(self, shape: CacheShape, like: Tensor) -> None:
        super().__init__(shape, like)
        self.memory_bias_buffer = like.new_full((shape.slots, 1, round_up(shape.source)), float("-inf"))
        self.capacity = 0
        self.grow(FIRST_LENGTH)
        self.own = like.new_full((shape.width, shape.width), float("-inf")).fill_diagonal_(0)

    def grow(self, capacity: int) -> None:
        """Make room for positions below `capacity`."""
        slots, width, _, _, layers, heads, head_dim = self.shape
        buffer = self.like.new_zeros(layers, 2, slots, heads, capacity, width * head_dim)  # masked keys must be numbers
        bias = self.like.new_full((slots, width, capacity * width), float("-inf"))
        if self.capacity:
            buffer[..., : self.capacity, :] = self.buffer
            bias[..., : self.bias_buffer.shape[-1]] = self.bias_buffer
        self.buffer, self.bias_buffer, self.capacity = buffer, bias, capacity

    def keep(self, slots: list[int], keys_values: list[Tensor], index: Tensor, lengths: Tensor) -> None:
        """Store keys and values of sources, with biases that hide what is beyond them, and what a row before left."""
        self.memory_buffer[:, :, index] = 0  # what is hidden must be finite
        for slot, part in zip(slots, keys_values, strict=True):
            self.memory_buffer[:, :, slot, :, : len(part)] = part.permute(1, 2, 3, 0, 4)
        hidden = torch.arange(self.memory_bias_buffer.shape[-1], device=index.device) >= lengths[:, None]
        self.memory_bias_buffer[index, 0] = self.like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        self.bias_buffer[index] = float("-inf")

    def release(self, slots: list[int]) -> None:
        """Do nothing: a slot's memory is its own."""

    def reach(self, rows: int) -> None:
        """Make room for the next token of the first `rows` rows."""
        super().start_step(rows)
        if self.length > self.capacity:
            self.grow(min(2 * self.capacity, round_up(self.shape.target)))

    def start_step(self, rows: int) -> None:
        """Prepare for the next token of the first `rows` rows: every hypothesis will see its own."""
        self.reach(rows)
        slots, width, heads = self.shape.slots, self.shape.width, self.shape.heads
        positions = self.positions[:rows]
        numbers = torch.arange(rows, device=self.like.device)
        self.bias_buffer.view(slots, width, self.capacity, width)[numbers, :, positions] = self.own
        lines = torch.arange(rows * heads, device=self.like.device)
        self.places = lines * self.capacity + positions.repeat_interleave(heads)

    @property
    def bias(self) -> Tensor:
        """0 at a hypothesis' ancestors and -inf elsewhere, (rows, width, positions x width)."""
        return self.bias_buffer[: self.rows, :, : self.length * self.shape.width]

    @property
    def memory_bias(self) -> Tensor:
        """0 at source tokens and -inf elsewhere, (rows, 1, source)."""
        return self.memory_bias_buffer[: self.rows, :, : self.source]

    def attend_past(self, layer: int, joint: Tensor) -> Tensor:
        """Store the newest keys and values and return what its queries gather."""
        query, keys, values = joint.unflatten(-1, (3, self.shape.heads, self.shape.head_dim)).unbind(1)
        past = self.append(layer, keys, values)
        return attend(query.unflatten(0, (self.rows, self.shape.width)), *past, self.bias)[0]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest position's keys and values, each (rows x width, heads, head_dim); return all,
        each (rows, heads, positions x width, head_dim)."""
        both = []
        for part, states in enumerate((keys, values)):
            buffer = self.buffer[layer, part]
            new = states.unflatten(0, (self.rows, self.shape.width)).transpose(1, 2).reshape(len(self.places), -1)
            buffer.view(-1, buffer.shape[-1]).index_copy_(0, self.places, new)
            seen = buffer[: self.rows].view(self.rows, self.shape.heads, -1, self.shape.head_dim)
            both.append(seen[:, :, : self.length * self.shape.width])
        return both[0], both[1]

    def attend_memory(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries gather of the source, and their weights."""
        keys, values = self.memory_buffer[layer, :, : self.rows, :, : self.source].unbind()
        query = queries.view(self.rows, -1, self.shape.heads, self.shape.head_dim)
        return attend(query, keys, values, self.memory_bias)

    def follow(self, parents: Tensor) -> None:
        """Give each hypothesis the ancestors of its parent, (rows, width)."""
        bias = self.bias
        bias.copy_(bias.gather(1, parents[..., None].expand_as(bias)))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows to other slots."""
        super().move(sources, targets)
        self.memory_bias_buffer[targets] = self.memory_bias_buffer[sources]
        self.buffer[:, :, targets, :, : self.length] = self.buffer[:, :, sources, :, : self.length]
        self.bias_buffer[targets] = self.bias_buffer[sources]
