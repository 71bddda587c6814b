"""Drafters propose blocks of tokens that the target then verifies. `NoDrafter` proposes blocks of length 0."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Batch


@dataclass(frozen=True)
class DraftBlock:
    """`tokens` [R, k]: up to k proposals for each request, most trusted first in the row."""

    tokens: Tensor

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


class Drafter(Protocol):
    tap_layers: tuple[int, ...]
    """Decoder layers of the target whose output `absorb` needs."""
    block_length: int
    """The most tokens a block has."""

    def propose(self, num_requests: int) -> DraftBlock: ...

    def absorb(self, batch: Batch, taps: dict[int, Tensor]) -> None:
        """Write the drafter's context for the tokens of a target step into the drafter part of their pages."""
        ...


class NoDrafter:
    """No speculation: every block is empty, and there is no context to keep."""

    tap_layers: tuple[int, ...] = ()
    block_length = 0

    def propose(self, num_requests: int) -> DraftBlock:
        return DraftBlock(torch.empty(num_requests, 0, dtype=torch.int64))

    def absorb(self, batch: Batch, taps: dict[int, Tensor]) -> None:
        pass
