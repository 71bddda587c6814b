"""Continuous batching: which requests take part in a step, and what a step did to them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from decode.objective import StepLoad
from decode.sequence import Sequence
from engine.batch import Batch, Row
from engine.config import DecodeConfig
from engine.drafters import Anchor, DraftBlock, HiddenStates
from engine.errors import ModelFailure
from engine.logits_processors import LogitsProcessors, TokenHistory
from engine.pages import Pages, Precedence
from engine.sampling import NO_TOKEN, SamplingBatch
from engine.types import Chunk, RequestEnded, SampledToken


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
        """Where drafting begins."""
        return [s.anchor for s in self.sequences]

    @property
    def rows(self) -> HiddenStates:
        """What the drafter kept of each request's last step."""
        return [s.drafter_hidden for s in self.sequences]

    def keep(self, rows: HiddenStates) -> None:
        """What the drafter keeps of this one."""
        for sequence, row in zip(self.sequences, rows, strict=True):
            sequence.drafter_hidden = row

    def demand(self, overhead_seconds: float = 0.0) -> StepLoad:
        """What a planner wants to know of the requests."""
        cached = [s.num_cached for s in self.sequences]
        names, most = [s.id for s in self.sequences], [s.most_drafts for s in self.sequences]
        return StepLoad(names, most, sum(cached) // len(cached), overhead_seconds)

    def trial(self, block: DraftBlock, lengths: list[int]) -> "VerifyBatch":
        """The first drafts of each request, as many as were planned, to be put before the target."""
        drafted = block.token_RK.tolist() if any(lengths) else [[]] * len(self)
        return VerifyBatch(self, [draft[:length] for draft, length in zip(drafted, lengths, strict=True)])


@dataclass(frozen=True)
class VerifyBatch:
    """What a step puts before the target: each request's uncached token, then the drafts to be verified.

    The target answers with a row of logits after each of them.
    """

    batch: DecodeBatch
    drafts: list[list[int]]

    @property
    def target(self) -> Batch:
        rows = []
        for sequence, drafts in zip(self.batch.sequences, self.drafts, strict=True):
            assert sequence.tables is not None
            tokens = [sequence.tokens[-1], *drafts]
            rows.append(Row(tokens, sequence.num_cached, sequence.tables, num_logits=len(tokens)))
        return Batch.of(rows, self.batch.pages.layout, self.batch.pages.store.device)

    @property
    def options(self) -> SamplingBatch:
        rows = [(s.request.sampling, len(s.tokens) + n) for s, n, _ in self._places]
        return SamplingBatch.of(rows, self.batch.pages.store.device)

    @property
    def logits_processors(self) -> LogitsProcessors | None:
        draws = [
            TokenHistory(s.request, [*s.tokens, *d[:n]]) if s.request.needs_logits_processors else None
            for s, n, d in self._places
        ]
        return LogitsProcessors.of(draws, self.batch.eos_token_ids, self.batch.pages.store.device)

    @property
    def _places(self) -> Iterator[tuple[Sequence, int, list[int]]]:
        """(request, drafts before, its drafts) of each row of logits."""
        for sequence, drafts in zip(self.batch.sequences, self.drafts, strict=True):
            yield from ((sequence, count, drafts) for count in range(len(drafts) + 1))


@dataclass(frozen=True)
class StepTimestamps:
    """Moments of one step on the engine's clock: its beginning, and when it had its drafts, its plan and its tokens.

    On CUDA drafting only queues work, unless the drafter has confidences, which are waited for; forward and acceptance
    queue theirs too, and the step's one copy to the host, which ends verification, waits for all of it.
    """

    began: float
    drafted: float
    planned: float
    verified: float

    @property
    def draft_seconds(self) -> float:
        return self.drafted - self.began

    @property
    def plan_seconds(self) -> float:
        return self.planned - self.drafted

    @property
    def verify_seconds(self) -> float:
        """From the plan to the tokens on the host; the drafter's context of them is written meanwhile."""
        return self.verified - self.planned


@dataclass(frozen=True)
class Step:
    """What a step drafted, planned and drew, before any request has taken its tokens."""

    batch: DecodeBatch
    block: DraftBlock
    lengths: list[int]
    drawn: list[list[SampledToken]]
    timestamps: StepTimestamps


class DecodeSchedule:
    """The requests that are decoding, in the order of precedence.

    Pages are taken as tokens come. When they run out, the request that is last in line gives all of its own back and
    is prefilled again with the tokens it has, by whoever owns it.
    """

    def __init__(self, pages: Pages, config: DecodeConfig, step_tokens: int, eos_token_ids: tuple[int, ...]) -> None:
        self._pages = pages
        self._step_tokens = step_tokens
        self._eos_token_ids = eos_token_ids
        self.max_requests = config.max_requests
        self.running: dict[str, Sequence] = {}
        self._evicted: list[Sequence] = []
        pages.queue.join(self)

    @property
    def holding(self) -> int:
        return len(self.running)

    @property
    def first_waiting(self) -> Precedence | None:
        return None

    @property
    def last_holding(self) -> Precedence | None:
        return next(reversed(self.running.values())).precedence if self.running else None

    def evict_last(self) -> None:
        """The last in line leaves; `evicted` will tell."""
        last = next(reversed(self.running.values()))
        self.remove(last.id)
        self._evicted.append(last)

    def join(self, sequence: Sequence) -> None:
        """Take in a request whose pages are here."""
        self.running[sequence.id] = sequence
        self.running = dict(sorted(self.running.items(), key=lambda item: item[1].precedence))

    def evicted(self) -> list[Sequence]:
        """Those that had to leave, for a step of this schedule or for another tenant, since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def make_room(self, coming: Iterable[Sequence] = ()) -> None:
        """Take every request's pages for the next step; for that, others may have to leave.

        The last one waits instead if one behind it is still `coming`, with pages of its own: that one will leave.
        """
        for sequence in list(self.running.values()):
            while sequence.id in self.running and not self._has_pages(sequence):
                last = self._pages.queue.last()
                alone = last is self and next(reversed(self.running)) == sequence.id
                if alone and any(one.precedence > sequence.precedence for one in coming):
                    break
                last.evict_last()

    def next(self) -> DecodeBatch:
        """Every request that has its pages."""
        ready = tuple(sequence for sequence in self.running.values() if not self._lacks_pages(sequence))
        return DecodeBatch(ready, self._pages, self._eos_token_ids)

    def commit(self, step: Step) -> list[Chunk | RequestEnded]:
        """Give every request its tokens, in the order of the batch. What has ended gives its pages back."""
        events: list[Chunk | RequestEnded] = []
        for sequence, drawn in zip(step.batch.sequences, step.drawn, strict=True):
            if any(draw.token == NO_TOKEN for draw in drawn):
                events.append(self._broken(sequence))
                continue
            events.append(sequence.commit(drawn))
            sequence.num_cached = len(sequence.tokens) - 1
            self.publish(sequence)
            if sequence.finish is not None:
                self.remove(sequence.id)
        return events

    def publish(self, sequence: Sequence) -> None:
        """Let others find the pages that are full."""
        assert sequence.tables is not None
        self._pages.publish(sequence.tables, sequence.tokens, sequence.num_cached)

    def overdue(self, now: float) -> list[Sequence]:
        """Take out the requests whose deadline has passed."""
        late = [sequence for sequence in self.running.values() if sequence.deadline <= now]
        for sequence in late:
            self.remove(sequence.id)
        return late

    def remove(self, request_id: str) -> Sequence | None:
        """Take a request out and give its pages back."""
        sequence = self.running.pop(request_id, None)
        if sequence is not None:
            assert sequence.tables is not None
            self._pages.release(sequence.tables)
        return sequence

    def _has_pages(self, sequence: Sequence) -> bool:
        assert sequence.tables is not None
        self._pages.trim(sequence.tables, sequence.num_cached)
        return self._pages.extend(sequence.tables, sequence.num_cached + self._step_tokens)

    def _lacks_pages(self, sequence: Sequence) -> bool:
        assert sequence.tables is not None
        return any(self._pages.missing(sequence.tables, sequence.num_cached + self._step_tokens).values())

    def _broken(self, sequence: Sequence) -> RequestEnded:
        assert sequence.tables is not None
        self._pages.clear(sequence.tables, published=True)
        self.remove(sequence.id)
        reason = f"the model gave NaN or infinity after {len(sequence.tokens)} tokens of {sequence.id}"
        return RequestEnded(request_id=sequence.id, error=ModelFailure(reason))
