"""Keys and values of decoded positions, in buffers that grow by doubling."""

from __future__ import annotations

from torch import Tensor

FIRST_LENGTH = 32


class KeyValueCache:
    """One layer's keys and values, (hypotheses, heads, length, head_dim)."""

    def __init__(self) -> None:
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values, the new ones last."""
        stop = self.length + keys.shape[2]
        self.keys = store(self.keys, keys, self.length, stop)
        self.values = store(self.values, values, self.length, stop)
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def select(self, hypotheses: Tensor) -> None:
        """Keep these hypotheses, in this order."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[hypotheses], self.values[hypotheses]


def store(buffer: Tensor | None, states: Tensor, start: int, stop: int) -> Tensor:
    """Return the buffer, grown if need be, with states at positions start..stop."""
    if buffer is None or buffer.shape[2] < stop:
        capacity = max(FIRST_LENGTH, 2 * stop)
        grown = states.new_empty((*states.shape[:2], capacity, states.shape[3]))
        if buffer is not None:
            grown[:, :, :start] = buffer[:, :, :start]
        buffer = grown
    buffer[:, :, start:stop] = states
    return buffer


class DecoderCache:
    """All that a batch in search keeps between tokens: the memory once a row, the past once a hypothesis."""

    def __init__(self, memory_keys_values: list[tuple[Tensor, Tensor]], memory_mask: Tensor) -> None:
        self.memory_keys_values = memory_keys_values
        self.memory_mask = memory_mask
        self.past = [KeyValueCache() for _ in memory_keys_values]

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows' memory."""
        self.memory_keys_values = [(keys[rows], values[rows]) for keys, values in self.memory_keys_values]
        self.memory_mask = self.memory_mask[rows]

    def select_hypotheses(self, hypotheses: Tensor) -> None:
        """Keep these hypotheses' past, in this order."""
        for layer in self.past:
            layer.select(hypotheses)
