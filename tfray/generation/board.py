"""What a search knows of the rows in the slots: their requests, limits, tokens and scores."""

from __future__ import annotations

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation.rows import Request, longest_target, shortest_target
from tfray.tokens.special import BOS_ID, PAD_ID


class Board:
    """The rows in slots 0 to `rows`, with `width` hypotheses each."""

    def __init__(self, slots: int, width: int, longest: int, config: GenerationConfig, device: torch.device) -> None:
        self.width, self.device, self.config, self.longest = width, device, config, longest
        self.rows = 0
        self.requests: list[Request] = [Request([])] * slots
        self.row_of: list[int] = [-1] * slots
        self.taken: list[int] = [0] * slots
        """The same as positions, at hand without asking the device."""
        self.numbers = torch.zeros(slots, dtype=torch.long, device=device)
        self.limits = torch.zeros(slots, dtype=torch.long, device=device)
        self.least = torch.zeros(slots, dtype=torch.long, device=device)
        self.positions = torch.zeros(slots, dtype=torch.long, device=device)
        """Tokens so far."""
        self.last = torch.full((slots, width), BOS_ID, dtype=torch.long, device=device)
        self.history = torch.full((slots, width, longest), PAD_ID, dtype=torch.long, device=device)
        self.scores = torch.zeros(slots, width, dtype=torch.float64, device=device)
        self.prefixes = torch.full((slots, 1), -1, dtype=torch.long, device=device)
        self.added: list[Tensor] = []

    @property
    def reached(self) -> int:
        """The most tokens that a row has so far."""
        return max(self.taken[: self.rows], default=0)

    def add(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the slots, (slots, ...), which from now on moves with them; it must stay the same one."""
        self.added.append(tensor)
        return tensor

    def admit(self, slots: list[int], rows: list[int], requests: list[Request]) -> None:
        """Give rows these slots."""
        index = torch.tensor(slots, device=self.device)
        lengths = [len(request.source) for request in requests]
        limits = [longest_target(length, self.longest, self.config) for length in lengths]
        self.limits[index] = torch.tensor(limits, device=self.device)
        self.least[index] = torch.tensor([shortest_target(n, self.config) for n in lengths], device=self.device)
        numbers = [
            row if request.number is None else request.number for row, request in zip(rows, requests, strict=True)
        ]
        self.numbers[index] = torch.tensor(numbers, device=self.device)
        self.positions[index] = 0
        self.last[index] = BOS_ID
        self.history[index] = PAD_ID
        self.scores[index] = 0.0
        self.prefixes[index] = -1
        for slot, row, request in zip(slots, rows, requests, strict=True):
            self.requests[slot], self.row_of[slot], self.taken[slot] = request, row, 0
            if request.prefix:
                self.set_prefix(slot, list(request.prefix))

    def set_prefix(self, slot: int, prefix: list[int]) -> None:
        missing = len(prefix) - self.prefixes.shape[1]
        if missing > 0:
            self.prefixes = torch.nn.functional.pad(self.prefixes, (0, missing), value=-1)
        self.prefixes[slot, : len(prefix)] = torch.tensor(prefix, device=self.device)

    def extend(self, tokens: Tensor, parents: Tensor | None) -> None:
        """Write the next tokens (rows, width), after letting hypotheses go on from their parents."""
        rows = self.rows
        if parents is not None:
            history = self.history[:rows, :, : self.reached]
            self.history[:rows, :, : self.reached] = history.gather(1, parents[..., None].expand_as(history))
        place = self.positions[:rows, None, None].expand(-1, self.width, 1)
        self.history[:rows].scatter_(2, place, tokens[..., None])
        self.last[:rows] = tokens
        self.positions[:rows] += 1
        self.taken[:rows] = [taken + 1 for taken in self.taken[:rows]]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows to other slots."""
        source, target = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        per_row = (self.numbers, self.limits, self.least, self.positions, self.prefixes)
        for tensor in (*per_row, self.last, self.history, self.scores, *self.added):
            tensor[target] = tensor[source]
        for old, new in zip(sources, targets, strict=True):
            self.requests[new], self.row_of[new] = self.requests[old], self.row_of[old]
            self.taken[new] = self.taken[old]
