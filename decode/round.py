"""The two halves of a decode step, as the engine runs them and as its times are measured."""

from dataclasses import dataclass

from decode.schedule import DecodeBatch
from decode.verify import Acceptor
from engine.backend import Backend
from engine.drafters import DraftBlock, Drafter
from engine.types import Drawn


@dataclass(frozen=True)
class Round:
    """Draft, verify: everything on the device, until the tokens are copied to the host."""

    backend: Backend
    drafter: Drafter
    acceptor: Acceptor

    def draft(self, batch: DecodeBatch, most: int) -> DraftBlock:
        """At most so many drafts for each request. With 0, the drafter has nothing to do."""
        return self.drafter.propose(batch.anchors, most) if most else DraftBlock.empty(len(batch))

    def verify(self, batch: DecodeBatch, block: DraftBlock, lengths: list[int]) -> list[list[Drawn]]:
        """The tokens of each request, never none, of which the first `lengths` drafts are put before the target."""
        trial = batch.trial(block, lengths)
        target = trial.target
        output = self.backend.forward(target)
        accepted = self.acceptor(output.logits, block, lengths, trial.options, trial.edits)
        last_R = target.logits_index[accepted.last_row_R]
        batch.keep(self.drafter.absorb(target, output.taps, batch.rows, last_R))
        return accepted.drawn()
