"""Drafters propose blocks of tokens that the target model then verifies. `NoDrafter` proposes blocks of length 0."""

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
    """K drafted tokens for each of R requests, in order.

    `log_probs_RKV` are the distributions that the tokens were sampled from; None if every token had probability 1.
    `confidence_RK` is the drafter's estimate of P(token j is accepted | all before it are), on the host.
    """

    token_RK: Tensor
    log_probs_RKV: Tensor | None = None
    confidence_RK: Tensor | None = None

    @classmethod
    def empty(cls, requests: int) -> "DraftBlock":
        return cls(torch.empty(requests, 0, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        anchors: Sequence["Anchor"],
        tokens: Sequence[Tensor],
        log_probs: Sequence[Tensor],
        confidence_RK: Tensor | None,
    ) -> "DraftBlock":
        """Build from the tokens [R] and log-probabilities [R, V] of each position.

        Distributions are kept only if a request needs rejection sampling. This waits for the confidences, because the
        next step of the engine needs the tokens on the host anyway.
        """
        rejection_sampling = not all(a.sampling.greedy or a.sampling.seeded for a in anchors)
        return cls(
            torch.stack(list(tokens), dim=1),
            torch.stack(list(log_probs), dim=1) if rejection_sampling else None,
            None if confidence_RK is None else confidence_RK.cpu(),
        )

    @property
    def length(self) -> int:
        return self.token_RK.shape[1]


@dataclass(frozen=True)
class Anchor:
    """The token that a draft block follows: a request's last committed one, which the target has not processed yet.

    The drafter's context begins at `context_from`: 0 unless the pages came without the drafter's part. `hidden` is the
    hidden state that `Drafter.absorb` returned for the token before, if the drafter keeps any.
    """

    token: int
    position: int
    tables: Tables
    sampling: Sampling
    context_from: int = 0
    hidden: Tensor | None = None


HiddenStates = Sequence[Tensor | None]
"""For each request, the hidden state of its last token that a drafter keeps until the next step, or None."""


def hidden_to_bytes(hidden: Tensor | None) -> bytes | None:
    """Serialize a hidden state as float32, which holds every supported dtype exactly."""
    return None if hidden is None else hidden.float().cpu().numpy().tobytes()


def hidden_from_bytes(content: bytes | None) -> Tensor | None:
    """Undo `hidden_to_bytes`."""
    return None if content is None else torch.frombuffer(bytearray(content), dtype=torch.float32)


class Drafter(Protocol):
    tap_layers: tuple[int, ...]
    """The target's decoder layers whose outputs `absorb` needs."""
    block_length: int
    """The maximum number of tokens in a block."""
    keeps_hidden: bool
    """Whether a step needs the hidden state of the step before. Then a prefix hit ends one token earlier, because that
    token's hidden state has to be computed."""

    def propose(self, anchors: Sequence[Anchor], max_drafts: int) -> DraftBlock:
        """Draft a block of at most `max_drafts` tokens for each request. The requests' pages must already hold
        `block_length` positions from the anchor on."""
        ...

    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: HiddenStates, last_R: Tensor) -> HiddenStates:
        """Write the drafter's context for the tokens of a target step into the drafter part of their pages.

        `before` are the hidden states of the step before; `last_R` is the index in the batch of each request's last
        committed token. Return the hidden states of these tokens.
        """
        ...


class LoadedDrafter(Protocol):
    """A drafter's weights. It has no cache, so several engines can share one."""

    @property
    def block_length(self) -> int: ...
    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that its layers cache in pages."""
        ...

    @property
    def fingerprint(self) -> dict[str, str]:
        """Names the drafter. If it differs between two pools, the drafter part of a handoff is not read."""
        ...

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """The calibrated temperature of the confidences at each position; None without calibration."""
        ...

    def bind(self, store: PageStore) -> Drafter:
        """Return a drafter for the engine that owns `store`."""
        ...


class NoDrafter:
    """Turns speculation off: every block is empty, and no context is kept."""

    tap_layers: tuple[int, ...] = ()
    block_length = 0
    keeps_hidden = False

    def propose(self, anchors: Sequence[Anchor], max_drafts: int) -> DraftBlock:
        return DraftBlock.empty(len(anchors))

    def absorb(self, batch: Batch, taps: dict[int, Tensor], before: HiddenStates, last_R: Tensor) -> HiddenStates:
        return before
