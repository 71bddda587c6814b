"""Drafters propose blocks of tokens that the target then verifies. `NoDrafter` proposes blocks of length 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Batch
from engine.pages import Entry, PageStore, Tables
from engine.types import Sampling


@dataclass(frozen=True)
class DraftBlock:
    """Up to k proposals for each of R requests, in the order in which they would follow.

    `log_probs` are those of the distributions that the tokens were drawn from; None says that nothing was drawn, each
    token had probability 1. `confidence` is the drafter's own estimate of P(token j survives | those before it did); it
    is on the host, where plans are made.
    """

    token_RK: Tensor
    log_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None

    @classmethod
    def empty(cls, requests: int) -> "DraftBlock":
        """Nothing is proposed."""
        return cls(torch.empty(requests, 0, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        anchors: Sequence["Anchor"],
        tokens: Sequence[Tensor],
        log_probs: Sequence[Tensor],
        confidence_RK: Tensor | None,
    ) -> "DraftBlock":
        """From what was drawn place by place. Only requests that rejection sampling serves need the distributions.
        Confidences are waited for: the next thing that is done with a block needs its tokens on the host too."""
        drawn = not all(a.sampling.greedy or a.sampling.seeded for a in anchors)
        return cls(
            torch.stack(list(tokens), dim=1),
            torch.stack(list(log_probs), dim=1) if drawn else None,
            None if confidence_RK is None else confidence_RK.cpu(),
        )

    @property
    def length(self) -> int:
        return self.token_RK.shape[1]


@dataclass(frozen=True)
class Anchor:
    """Where a request stands: its last committed `token`, at `position`, which the target has not seen yet.

    The drafter's context of it begins at `context_from`: 0 unless the pages came without the drafter's part. `row` is
    what the drafter kept of the token before (`Drafter.absorb`), if it keeps rows.
    """

    token: int
    position: int
    tables: Tables
    sampling: Sampling
    context_from: int = 0
    row: Tensor | None = None


Rows = Sequence[Tensor | None]
"""What a drafter keeps of each request's last token until the next step: a hidden state, or nothing."""


def row_bytes(row: Tensor | None) -> bytes | None:
    """A row on its way to another process: float32, which holds every dtype of ours."""
    return None if row is None else row.float().cpu().numpy().tobytes()


def row_from(content: bytes | None) -> Tensor | None:
    """The row that `row_bytes` made."""
    return None if content is None else torch.frombuffer(bytearray(content), dtype=torch.float32)


class Drafter(Protocol):
    tap_layers: tuple[int, ...]
    """Decoder layers of the target whose output `absorb` needs."""
    block_length: int
    """The most tokens a block has."""
    keeps_rows: bool
    """Whether a step needs the row of the step before: then the last token of a prefix hit is computed again."""

    def propose(self, anchors: Sequence[Anchor], most: int) -> DraftBlock:
        """The first `most` drafts of a block, or all if it has fewer, for each request; its pages reach `block_length`
        positions from the anchor on."""
        ...

    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: Rows, last_R: Tensor) -> Rows:
        """Write the drafter's context for the tokens of a target step into the drafter part of their pages.

        `before` are the rows of the step before; `last_R` is the last token of each request that counts, as an index
        into the batch. Returns the rows of these.
        """
        ...


class LoadedDrafter(Protocol):
    """A drafter's weights. Holds no cache: several engines can share one."""

    @property
    def block_length(self) -> int: ...
    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it keeps in pages."""
        ...

    @property
    def fingerprint(self) -> dict[str, str]:
        """What two pools must agree on, or the drafter part of a handoff is not read."""
        ...

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """What its confidences were calibrated with, by place; None if they were not."""
        ...

    def over(self, store: PageStore) -> Drafter:
        """The drafter of one engine, with pages of its own."""
        ...


class NoDrafter:
    """No speculation: every block is empty, and there is no context to keep."""

    tap_layers: tuple[int, ...] = ()
    block_length = 0
    keeps_rows = False

    def propose(self, anchors: Sequence[Anchor], most: int) -> DraftBlock:
        return DraftBlock.empty(len(anchors))

    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: Rows, last_R: Tensor) -> Rows:
        return before
