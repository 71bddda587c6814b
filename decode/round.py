"""The two halves of a decode step, as the engine runs them and as its times are measured."""

from dataclasses import dataclass, field

from decode.schedule import DecodeBatch
from decode.verify import Acceptor
from engine.backend import Backend
from engine.clock import Stopwatch
from engine.drafters import DraftBlock, Drafter
from engine.types import Drawn


@dataclass(frozen=True)
class Round:
    """Draft, verify: everything on the device, until the tokens are copied to the host. `computing` is the time that
    models take: the target, the drafter, and the wait for the tokens."""

    backend: Backend
    drafter: Drafter
    acceptor: Acceptor
    computing: Stopwatch = field(default_factory=Stopwatch)

    def draft(self, batch: DecodeBatch, most: int) -> DraftBlock:
        """At most so many drafts for each request. With 0, the drafter has nothing to do."""
        if not most:
            return DraftBlock.empty(len(batch))
        with self.computing:
            return self.drafter.propose(batch.anchors, most)

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[Drawn]]:
        """The tokens of each request, never none, of which the first `lengths` drafts are put before the target."""
        trial = batch.trial(block, lengths)
        target = trial.target
        with self.computing:
            output = self.backend.forward(target)
        accepted = self.acceptor(output.logits, block, lengths, trial.options, trial.edits)
        last_R = target.logits_index[accepted.last_row_R]
        with self.computing:
            batch.keep(self.drafter.absorb(target, output.taps, batch.rows, last_R))
            return accepted.drawn()
