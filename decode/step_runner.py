"""The two model calls of a decode step: draft and verify."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from decode.batch import DecodeBatch
from decode.verify import Acceptor
from engine.backend import Backend
from engine.batch import Batch
from engine.clock import Stopwatch
from engine.drafters import DraftBlock, Drafter
from engine.types import SampledToken

Taps = dict[int, Tensor]
MAX_DEFERRED = 32  # steps


class StepRunner(Protocol):
    """Runs the models of a step, or a simulation of them (compare/simulator/virtual.py)."""

    @property
    def block_length(self) -> int:
        """The drafts of a block; 0 without a drafter."""
        ...

    @property
    def synthetic(self) -> bool:
        """Return whether drafts are accepted at given rates, so that the output is not the target's own."""
        ...

    @property
    def computing(self) -> Stopwatch:
        """The time that the models take: the target, the drafter, and the wait for the tokens."""
        ...

    def draft(self, batch: DecodeBatch, max_drafts: int) -> DraftBlock:
        """Make up to `max_drafts` drafts for each request; with 0, the drafter does not run."""
        ...

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        """Verify the first `lengths` drafts of each request, and return its accepted drafts and one token more."""
        ...


@dataclass(frozen=True)
class ModelStepRunner:
    """Drafts and verifies on the device; the tokens are copied to the host once.

    While no drafts are made, the drafter's context is written for several steps at once: it is only needed when
    drafting resumes. (With drafts it cannot be deferred: the next step writes the rejected positions again.)
    """

    backend: Backend
    drafter: Drafter
    acceptor: Acceptor
    computing: Stopwatch = field(default_factory=Stopwatch)
    _deferred: list[tuple[Batch, Taps]] = field(default_factory=list, init=False)

    @property
    def block_length(self) -> int:
        return self.drafter.block_length

    @property
    def synthetic(self) -> bool:
        return self.acceptor.synthetic

    def draft(self, batch: DecodeBatch, max_drafts: int) -> DraftBlock:
        if not max_drafts:
            return DraftBlock.empty(len(batch))
        with self.computing:
            self.flush_context()
            return self.drafter.propose(batch.anchors, max_drafts)

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        rows = batch.verify_batch(block, lengths)
        target = rows.target
        with self.computing:
            output = self.backend.forward(target)
        accepted = self.acceptor(output.logits, block, lengths, rows.options, rows.logits_processors)
        with self.computing:
            if any(lengths) or self.drafter.keeps_hidden:
                self.flush_context()
                last_R = target.logits_index[accepted.last_row_R]
                batch.keep(self.drafter.absorb(target, output.taps, batch.drafter_rows, last_R))
            elif self.drafter.tap_layers:
                self._deferred.append((target, output.taps))
                batch.pages.defer_writes(self.flush_context)
                if len(self._deferred) >= MAX_DEFERRED:
                    self.flush_context()
            return accepted.to_host()

    def flush_context(self) -> None:
        """Write the drafter's context of the deferred steps."""
        if self._deferred:
            batches, taps = zip(*self._deferred, strict=True)
            self._deferred.clear()
            joined = {layer: torch.cat([one[layer] for one in taps]) for layer in self.drafter.tap_layers}
            batch = Batch.joined(batches)
            self.drafter.absorb(batch, joined, (), batch.logits_index)
