"""The batch of a decode step: its requests, the facts that the planner needs, and the rows that are verified."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from decode.sequence import Sequence
from engine.batch import Batch, Row
from engine.drafters import Anchor, DraftBlock, HiddenStates
from engine.logits_processors import LogitsProcessors, TokenHistory
from engine.pages import Pages
from engine.sampling import SamplingBatch


@dataclass(frozen=True)
class StepLoad:
    """The requests of a step as a planner sees them.

    `names` identify requests across steps, `max_drafts` limits the drafts of each, and `context` is the mean number of
    their cached tokens. `overhead_seconds` is the time that recent steps took beside drafting, planning and verifying.
    """

    names: SequenceOf[str]
    max_drafts: SequenceOf[int]
    context: int
    overhead_seconds: float = 0.0


@dataclass(frozen=True)
class DecodeBatch:
    """The requests of one step, in order."""

    sequences: tuple[Sequence, ...]
    pages: Pages
    eos_token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def anchors(self) -> list[Anchor]:
        return [s.anchor for s in self.sequences]

    @property
    def drafter_rows(self) -> HiddenStates:
        """The drafter's state of each request after the last step."""
        return [s.drafter_hidden for s in self.sequences]

    def keep(self, rows: HiddenStates) -> None:
        """Store the drafter's state of each request after this step."""
        for sequence, row in zip(self.sequences, rows, strict=True):
            sequence.drafter_hidden = row

    def load(self, overhead_seconds: float = 0.0) -> StepLoad:
        cached = [s.num_cached for s in self.sequences]
        names, max_drafts = [s.id for s in self.sequences], [s.max_drafts for s in self.sequences]
        return StepLoad(names, max_drafts, sum(cached) // len(cached), overhead_seconds)

    def verify_batch(self, block: DraftBlock, lengths: list[int]) -> "VerifyBatch":
        """Return the rows for the target: the first `lengths` drafts of each request."""
        drafted = block.token_RK.tolist() if any(lengths) else [[]] * len(self)
        return VerifyBatch(self, [draft[:length] for draft, length in zip(drafted, lengths, strict=True)])


@dataclass(frozen=True)
class VerifyBatch:
    """The tokens that the target computes in a step: each request's uncached token, then its drafts to be verified.

    The target returns a row of logits after each of them.
    """

    batch: DecodeBatch
    drafts: list[list[int]]

    @property
    def target(self) -> Batch:
        rows = []
        for sequence, drafts in zip(self.batch.sequences, self.drafts, strict=True):
            tokens = [sequence.tokens[-1], *drafts]
            rows.append(Row(tokens, sequence.num_cached, sequence.tables, num_logits=len(tokens)))
        return Batch.of(rows, self.batch.pages.layout, self.batch.pages.store.device)

    @property
    def options(self) -> SamplingBatch:
        rows = [(s.request.sampling, len(s.tokens) + n) for s, n, _ in self._rows]
        return SamplingBatch.of(rows, self.batch.pages.store.device)

    @property
    def logits_processors(self) -> LogitsProcessors | None:
        draws = [
            TokenHistory(s.request, [*s.tokens, *d[:n]]) if s.request.needs_logits_processors else None
            for s, n, d in self._rows
        ]
        return LogitsProcessors.of(draws, self.batch.eos_token_ids, self.batch.pages.store.device)

    @property
    def _rows(self) -> Iterator[tuple[Sequence, int, list[int]]]:
        """Yield (request, number of drafts before the row, its drafts) for each row of logits."""
        for sequence, drafts in zip(self.batch.sequences, self.drafts, strict=True):
            yield from ((sequence, count, drafts) for count in range(len(drafts) + 1))
