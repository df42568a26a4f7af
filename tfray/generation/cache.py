"""What decoding keeps of each row: keys and values of its source once, and of its hypotheses' tokens.

A row has a slot; the slots in use are the first ones. A row's tokens stand at their own positions, so a row
that enters late has its keys where it would have them alone, and sums over them are the same to the last bit.

All hypotheses of a row write into one list of keys, (position, hypothesis), and none is ever copied:
`bias` says for each hypothesis which of them are its ancestors.

    width 2, after 3 tokens      p0h0 p0h1 p1h0 p1h1 p2h0 p2h1
    hypothesis 0 sees              x         x         x            0 <- 0 <- 0
    hypothesis 1 sees              x         x              x       1 <- 0 <- 0
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tfray.generation import native

FIRST_LENGTH = 32  # positions; doubled when a row outgrows it
# Lengths are rounded up: fewer shapes, and kernels that sum alike whatever the length (below 16 keys,
# products and softmax take other ways, with other last bits).
PAD_TO = 16


def round_up(length: int) -> int:
    """Return a length rounded up to a multiple of PAD_TO."""
    return -(-length // PAD_TO) * PAD_TO


def in_blocks(keys: Tensor) -> Tensor:
    """Return keys (rows, heads, positions, head_dim) as the kernels want them, the positions of a block side by side:
    (rows, heads, blocks, head_dim, lanes)."""
    return keys.unflatten(2, (-1, native.lanes())).transpose(3, 4).contiguous()


class SlotCache:
    """Keys and values of up to `slots` rows with `width` hypotheses each, for one model."""

    def __init__(
        self,
        slots: int,
        width: int,
        source: int,
        layers: int,
        heads: int,
        head_dim: int,
        like: Tensor,
        kernels: ctypes.CDLL | None = None,
    ) -> None:
        self.kernels = kernels
        self.slots, self.width, self.heads, self.head_dim = slots, width, heads, head_dim
        self.like = like
        self.layers = layers
        self.positions = torch.zeros(slots, dtype=torch.long, device=like.device)
        self.memory_buffer = like.new_zeros(layers, 2, slots, heads, round_up(source), head_dim)
        self.memory_lengths = torch.ones(slots, dtype=torch.long, device=like.device)
        self.memory_bias_buffer = like.new_full((slots, 1, round_up(source)), float("-inf"))
        self.source_lengths = [0] * slots
        self.steps_taken = [0] * slots
        self.capacity = 0
        self.grow(FIRST_LENGTH)
        self.rows = 0
        self.length = 0
        self.own = torch.zeros(width, width, dtype=like.dtype, device=like.device)
        self.own.fill_(float("-inf")).fill_diagonal_(0)

    def grow(self, capacity: int) -> None:
        """Make room for positions below `capacity`."""
        shape = (self.layers, 2, self.slots, self.heads, capacity, self.width * self.head_dim)
        buffer = self.like.new_zeros(shape)  # a masked key must still be a number
        ancestors = torch.zeros(self.slots, self.width, capacity, dtype=torch.int32, device=self.like.device)
        seen = 0 if self.kernels else capacity * self.width  # the kernels need no bias
        bias = self.like.new_full((self.slots, self.width, seen), float("-inf"))
        if self.capacity:
            buffer[..., : self.capacity, :] = self.buffer
            ancestors[..., : self.capacity] = self.ancestors
            bias[..., : self.bias_buffer.shape[-1]] = self.bias_buffer
        self.buffer, self.bias_buffer, self.ancestors, self.capacity = buffer, bias, ancestors, capacity

    def admit(self, slots: list[int], keys_values: list[Tensor]) -> None:
        """Give rows these slots; keys_values: a row's (source, layers, 2, heads, head_dim) each."""
        device = self.like.device
        index = torch.tensor(slots, device=device)
        lengths = [len(part) for part in keys_values]
        if self.kernels is not None:
            self.keep_natively(self.kernels, slots, keys_values)
        else:
            self.keep(index, slots, keys_values)
        self.bias_buffer[index] = float("-inf")
        self.positions[index] = 0
        self.memory_lengths[index] = torch.tensor(lengths, device=device)
        for slot, length in zip(slots, lengths, strict=True):
            self.source_lengths[slot], self.steps_taken[slot] = length, 0

    def keep(self, index: Tensor, slots: list[int], keys_values: list[Tensor]) -> None:
        """Store keys and values of sources, and a bias that hides what is beyond them."""
        # There stand zeros: finite, and masked.
        self.memory_buffer[:, :, index] = 0
        for slot, part in zip(slots, keys_values, strict=True):
            self.memory_buffer[:, :, slot, :, : len(part)] = part.permute(1, 2, 3, 0, 4)
        place = torch.arange(self.memory_bias_buffer.shape[-1], device=index.device)
        lengths = torch.tensor([len(part) for part in keys_values], device=index.device)
        hidden = place >= lengths[:, None]
        self.memory_bias_buffer[index, 0] = self.like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))

    def keep_natively(self, kernels: ctypes.CDLL, slots: list[int], keys_values: list[Tensor]) -> None:
        """Store the same for the kernels, which look at no more than a source's length."""
        layers, _, *shape = self.memory_buffer.shape
        keep = kernels.keep_memory_half if self.like.dtype == torch.bfloat16 else kernels.keep_memory
        for slot, part in zip(slots, keys_values, strict=True):
            native.call(keep, part.contiguous(), self.memory_buffer, slot, len(part), layers, *shape)

    def reach(self, rows: int) -> None:
        """Make room for the next token of the first `rows` rows."""
        self.rows = rows
        longest = max(self.steps_taken[:rows])
        if longest >= self.capacity:
            self.grow(max(2 * self.capacity, round_up(longest + 1)))
        self.length = min(round_up(longest + 1), self.capacity)
        self.source = round_up(max(self.source_lengths[:rows]))

    def start_step(self, rows: int) -> None:
        """Prepare for the next token of the first `rows` rows: every hypothesis will see its own."""
        self.reach(rows)
        if self.kernels:
            return
        positions = self.positions[:rows]
        numbers = torch.arange(rows, device=self.like.device)
        self.bias_buffer.view(self.slots, self.width, self.capacity, self.width)[numbers, :, positions] = self.own
        heads = torch.arange(rows * self.heads, device=self.like.device)
        self.places = heads * self.capacity + positions.repeat_interleave(self.heads)

    @property
    def bias(self) -> Tensor:
        """0 at a hypothesis' ancestors and -inf elsewhere, (rows, width, positions x width)."""
        return self.bias_buffer[: self.rows, :, : self.length * self.width]

    @property
    def memory_bias(self) -> Tensor:
        """0 at source tokens and -inf elsewhere, (rows, 1, source)."""
        return self.memory_bias_buffer[: self.rows, :, : self.source]

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values of the source, each (rows, heads, source, head_dim)."""
        keys, values = self.memory_buffer[layer, :, : self.rows, :, : self.source].unbind()
        return keys, values

    def attend_past(self, layer: int, joint: Tensor) -> Tensor:
        """Store the newest keys and values and return what its queries gather, by the kernels; joint:
        (rows x width, 3 x d_model), output: (rows x width, d_model)."""
        assert self.kernels is not None
        output = joint.new_empty(len(joint), self.heads * self.head_dim)
        keys, values = self.buffer[layer]
        shape = (self.rows, self.width, self.heads, self.head_dim, self.capacity)
        kernel = self.kernels.attend_past_half if keys.dtype == torch.bfloat16 else self.kernels.attend_past
        native.call(kernel, joint, keys, values, self.ancestors, self.positions, output, *shape)
        return output

    def attend_memory(self, layer: int, queries: Tensor) -> Tensor:
        """Return what queries gather of the source, by the kernels, (rows x width, d_model) each."""
        assert self.kernels is not None
        output = torch.empty_like(queries)
        keys, values = self.memory_buffer[layer]
        shape = (self.rows, self.width, self.heads, self.head_dim, self.memory_buffer.shape[4])
        kernel = self.kernels.attend_memory_half if keys.dtype == torch.bfloat16 else self.kernels.attend_memory
        native.call(kernel, queries, keys, values, self.memory_lengths, output, *shape)
        return output

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest position's keys and values, each (rows x width, heads, head_dim); return all,
        each (rows, heads, positions x width, head_dim)."""
        both = []
        for part, states in enumerate((keys, values)):
            buffer = self.buffer[layer, part]
            new = states.unflatten(0, (self.rows, self.width)).transpose(1, 2).reshape(len(self.places), -1)
            buffer.view(-1, buffer.shape[-1]).index_copy_(0, self.places, new)
            seen = buffer[: self.rows].view(self.rows, self.heads, -1, self.head_dim)
            both.append(seen[:, :, : self.length * self.width])
        return both[0], both[1]

    def end_step(self, parents: Tensor | None) -> None:
        """Let hypothesis (row, i) go on from (row, parents[row, i]); None: each from itself."""
        if self.kernels and parents is not None:
            lines = self.ancestors[: self.rows, :, : self.length]
            lines.copy_(lines.gather(1, parents[..., None].expand_as(lines)))
        self.positions[: self.rows] += 1
        self.steps_taken[: self.rows] = [steps + 1 for steps in self.steps_taken[: self.rows]]
        if parents is not None and not self.kernels:
            stop = self.length * self.width
            bias = self.bias_buffer[: self.rows, :, :stop]
            self.bias_buffer[: self.rows, :, :stop] = bias.gather(1, parents[..., None].expand_as(bias))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows to other slots."""
        device = self.like.device
        source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        self.memory_buffer[:, :, target] = self.memory_buffer[:, :, source]
        self.memory_bias_buffer[target] = self.memory_bias_buffer[source]
        self.buffer[:, :, target, :, : self.length] = self.buffer[:, :, source, :, : self.length]
        self.bias_buffer[target] = self.bias_buffer[source]
        self.positions[target] = self.positions[source]
        self.ancestors[target] = self.ancestors[source]
        self.memory_lengths[target] = self.memory_lengths[source]
        for old, new in zip(sources, targets, strict=True):
            self.source_lengths[new] = self.source_lengths[old]
            self.steps_taken[new] = self.steps_taken[old]
