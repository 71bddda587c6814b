"""The two halves of a decode step, as the engine runs them and as its times are measured."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from decode.schedule import DecodeBatch
from decode.verify import Acceptor
from engine.backend import Backend
from engine.batch import Batch
from engine.clock import Stopwatch
from engine.drafters import DraftBlock, Drafter
from engine.types import SampledToken

Taps = dict[int, Tensor]
LATE_STEPS = 32


class StepRunner(Protocol):
    """What the decoder asks of a step: real, or with a simulator's drafts (compare/virtual.py)."""

    @property
    def block_length(self) -> int:
        """Drafts of a block; 0 if nothing drafts."""
        ...

    @property
    def synthetic(self) -> bool:
        """Whether the tokens are not the target's own."""
        ...

    @property
    def computing(self) -> Stopwatch:
        """The time that models take: the target, the drafter, and the wait for the tokens."""
        ...

    def draft(self, batch: DecodeBatch, most: int) -> DraftBlock:
        """At most so many drafts for each request. With 0, the drafter has nothing to do."""
        ...

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        """The tokens of each request, never none, of which the first `lengths` drafts are put before the target."""
        ...


@dataclass(frozen=True)
class ModelStepRunner:
    """Draft, verify: everything on the device, until the tokens are copied to the host.

    While nothing is drafted, the drafter's context is written for several steps at once: it is only needed when
    drafting begins again. (With drafts it cannot wait: a place that was rejected is written again by the next step.)
    """

    backend: Backend
    drafter: Drafter
    acceptor: Acceptor
    computing: Stopwatch = field(default_factory=Stopwatch)
    _late: list[tuple[Batch, Taps]] = field(default_factory=list, init=False)

    @property
    def block_length(self) -> int:
        return self.drafter.block_length

    @property
    def synthetic(self) -> bool:
        return self.acceptor.synthetic

    def draft(self, batch: DecodeBatch, most: int) -> DraftBlock:
        if not most:
            return DraftBlock.empty(len(batch))
        with self.computing:
            self.flush_context()
            return self.drafter.propose(batch.anchors, most)

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[SampledToken]]:
        trial = batch.trial(block, lengths)
        target = trial.target
        with self.computing:
            output = self.backend.forward(target)
        accepted = self.acceptor(output.logits, block, lengths, trial.options, trial.logits_processors)
        with self.computing:
            if any(lengths) or self.drafter.keeps_hidden:
                self.flush_context()
                last_R = target.logits_index[accepted.last_row_R]
                batch.keep(self.drafter.absorb(target, output.taps, batch.rows, last_R))
            elif self.drafter.tap_layers:
                self._late.append((target, output.taps))
                batch.pages.defer_writes(self.flush_context)
                if len(self._late) >= LATE_STEPS:
                    self.flush_context()
            return accepted.drawn()

    def flush_context(self) -> None:
        """Write the drafter's context of the steps for which that was put off."""
        if self._late:
            batches, taps = zip(*self._late, strict=True)
            self._late.clear()
            joined = {layer: torch.cat([one[layer] for one in taps]) for layer in self.drafter.tap_layers}
            whole = Batch.joined(batches)
            self.drafter.absorb(whole, joined, (), whole.logits_index)
