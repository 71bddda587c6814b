"""Continuous batching: which requests take part in a decode step, and which ones give up their pages."""

from collections.abc import Iterable

from decode.batch import DecodeBatch
from decode.sequence import Sequence, WaitingSequence
from decode.step_result import StepResult
from engine.config import DecodeConfig
from engine.errors import ModelFailure
from engine.pages import Pages, Precedence
from engine.sampling import NO_TOKEN
from engine.types import Chunk, Ended


class DecodeSchedule:
    """The requests that are decoding, in the order of precedence.

    Pages are taken as tokens are generated. When they run out, the last request gives back all of its pages; the owner
    of the request sends it through prefill again with the tokens that it has.
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
        """Take out the last request; `evicted` returns it."""
        last = next(reversed(self.running.values()))
        self.remove(last.id)
        self._evicted.append(last)

    def join(self, sequence: Sequence) -> None:
        """Add a request, and let others find its full pages."""
        self.running[sequence.id] = sequence
        self.running = dict(sorted(self.running.items(), key=lambda item: item[1].precedence))
        self._publish(sequence)

    def evicted(self) -> list[Sequence]:
        """Return the requests that gave up their pages since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def make_room(self, incoming: Iterable[WaitingSequence] = ()) -> None:
        """Take every request's pages for the next step. If there are too few, the last request is evicted.

        If one of `incoming`, which have pages and do not run yet, has a later precedence, the last running request
        waits instead: the incoming one will be evicted once it runs.
        """
        for sequence in list(self.running.values()):
            while sequence.id in self.running and not self._take_pages(sequence):
                last = self._pages.queue.last()
                is_last = last is self and next(reversed(self.running)) == sequence.id
                if is_last and any(other.precedence > sequence.precedence for other in incoming):
                    break
                last.evict_last()

    def next(self) -> DecodeBatch:
        """Return every request that has its pages."""
        ready = tuple(sequence for sequence in self.running.values() if self._has_pages(sequence))
        return DecodeBatch(ready, self._pages, self._eos_token_ids)

    def commit(self, result: StepResult) -> list[Chunk | Ended]:
        """Give every request its tokens, in the order of the batch. Finished requests give their pages back."""
        events: list[Chunk | Ended] = []
        for sequence, tokens in zip(result.batch.sequences, result.tokens, strict=True):
            if any(sampled.token == NO_TOKEN for sampled in tokens):
                events.append(self._fail(sequence))
                continue
            events.append(sequence.output.commit(tokens))
            self._publish(sequence)
            if sequence.finish is not None:
                self.remove(sequence.id)
        return events

    def overdue(self, now: float) -> list[Sequence]:
        """Take out the requests whose deadline has passed, and return them."""
        late = [sequence for sequence in self.running.values() if sequence.deadline <= now]
        for sequence in late:
            self.remove(sequence.id)
        return late

    def remove(self, request_id: str) -> bool:
        """Take a request out and give its pages back. Return False if it does not run."""
        sequence = self.running.pop(request_id, None)
        if sequence is not None:
            self._pages.release(sequence.tables)
        return sequence is not None

    def _publish(self, sequence: Sequence) -> None:
        self._pages.publish(sequence.tables, sequence.tokens, sequence.num_cached)

    def _take_pages(self, sequence: Sequence) -> bool:
        self._pages.trim(sequence.tables, sequence.num_cached)
        return self._pages.extend(sequence.tables, sequence.num_cached + self._step_tokens)

    def _has_pages(self, sequence: Sequence) -> bool:
        return not any(self._pages.missing(sequence.tables, sequence.num_cached + self._step_tokens).values())

    def _fail(self, sequence: Sequence) -> Ended:
        self._pages.clear(sequence.tables, published=True)
        self.remove(sequence.id)
        reason = f"the model gave NaN or infinity after {len(sequence.tokens)} tokens of {sequence.id}"
        return Ended(request_id=sequence.id, error=ModelFailure(reason))
