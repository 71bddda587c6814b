"""Drafters propose blocks of tokens that the target then verifies. `NoDrafter` proposes blocks of length 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Batch
from engine.pages import Tables
from engine.types import Sampling


@dataclass(frozen=True)
class DraftBlock:
    """Up to k proposals for each of R requests, in the order in which they would follow.

    `log_probs` are those of the distributions that the tokens were drawn from; None says that nothing was drawn, each
    token had probability 1. `confidence` is the drafter's own estimate of P(token j survives | those before it did).
    """

    token_RK: Tensor
    log_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None

    @property
    def length(self) -> int:
        return self.token_RK.shape[1]


@dataclass(frozen=True)
class Anchor:
    """Where a request stands: its last committed `token`, at `position`, which the target has not seen yet.

    The drafter's context of it begins at `context_from`: 0 unless the pages came without the drafter's part.
    """

    token: int
    position: int
    tables: Tables
    sampling: Sampling
    context_from: int = 0


class Drafter(Protocol):
    tap_layers: tuple[int, ...]
    """Decoder layers of the target whose output `absorb` needs."""
    block_length: int
    """The most tokens a block has."""

    def propose(self, anchors: Sequence[Anchor]) -> DraftBlock:
        """A block for each request; its pages reach `block_length` positions from the anchor on."""
        ...

    def absorb(self, batch: Batch, taps: dict[int, Tensor]) -> None:
        """Write the drafter's context for the tokens of a target step into the drafter part of their pages."""
        ...


class NoDrafter:
    """No speculation: every block is empty, and there is no context to keep."""

    tap_layers: tuple[int, ...] = ()
    block_length = 0

    def propose(self, anchors: Sequence[Anchor]) -> DraftBlock:
        return DraftBlock(torch.empty(len(anchors), 0, dtype=torch.int64))

    def absorb(self, batch: Batch, taps: dict[int, Tensor]) -> None:
        pass
