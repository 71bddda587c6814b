"""A decode replica that prefills some requests itself: both engines over the same pages, a chunk between two steps.

    serve(request)           prefiller: chunk, chunk, Handoff ── pages change hands as they are ──┐
    add(request, handoff)    decoder: pages read over the transfer ───────────────────────────────┴── Chunk, Chunk, ...

Both keep one line (engine/pages/page_queue.py): whichever engine a request is in, its precedence says when it gets
pages and a seat among the `max_requests`, and who leaves when pages run out.
"""

from dataclasses import replace
from pathlib import Path

from decode import Decoder
from engine.pages import Pages
from engine.stats import ReplicaStats
from engine.types import Event, Handoff, Request
from prefill import Prefiller


class ColocatedEngine:
    """A Decoder and a Prefiller over one `Pages`. Not thread-safe: one thread calls everything."""

    def __init__(self, pages: Pages, prefiller: Prefiller, decoder: Decoder) -> None:
        self.prefiller = prefiller
        self.decoder = decoder
        self._pages = pages
        self._prompts: dict[str, Request] = {}  # what the prefiller has
        self._prefilled = 0

    def add(self, request: Request, handoff: Handoff) -> None:
        """Take over a request whose prompt is in a prefill replica's pages, as `Decoder.add` does."""
        self.decoder.add(request, handoff)

    def serve(self, request: Request) -> None:
        """Take a request from its prompt to its last token. Its `Handoff` comes first, then its `Chunk`s.

        Raises DoesNotFit, and Overloaded, unless it comes back, if too many prompts wait here.
        """
        self.decoder.check(request)
        self.prefiller.add(request)
        self._prompts[request.id] = request

    def cancel(self, request_id: str) -> None:
        """Forget a request in whatever state it is, and free its pages. Unknown ids are fine."""
        self._prompts.pop(request_id, None)
        self.prefiller.cancel(request_id)
        self.decoder.cancel(request_id)

    def step(self) -> list[Event]:
        """One decode step, then one chunk of prompts. Of those that are done the first token goes out at once, and the
        next step decodes from their pages."""
        events = self.decoder.step()
        for event in self.prefiller.step():
            request = self._prompts.pop(event.request_id)
            if isinstance(event, Handoff):
                self._pass_on(request, event)
            events.append(event)
        return events + self.decoder.pending_events()

    def warm_up(self) -> None:
        """Steps of both engines, so that no request pays for first times."""
        self.prefiller.warm_up()
        self.decoder.warm_up()

    @property
    def record_file(self) -> Path | None:
        """Where its decode steps are recorded, if they are."""
        return self.decoder.record_file

    def close(self) -> None:
        """No more steps."""
        self.decoder.close()

    def next_deadline(self) -> float | None:
        """When `step` wants to be called next, on the clock; None if nothing is under way."""
        deadlines = (self.prefiller.next_deadline(), self.decoder.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def stats(self) -> ReplicaStats:
        """Return the sum of both engines' statistics. What they share counts once, and so does a request that both had;
        `steps` and `tokens` are those of decoding."""
        prompts, answers = self.prefiller.stats(), self.decoder.stats()
        both = answers + prompts
        return replace(
            both,
            max_requests=answers.max_requests,
            peak_bytes=answers.peak_bytes,
            pages=answers.pages,
            counters=replace(
                both.counters,
                steps=answers.counters.steps,
                tokens=answers.counters.tokens,
                requests=both.counters.requests - self._prefilled,
                local_prefills=self._prefilled,
                local_tokens=prompts.counters.tokens,
            ),
        )

    def assert_consistent(self) -> None:
        """Every page is in one state, and every prompt in one engine; with nothing under way, all pages are free."""
        self._pages.assert_consistent()
        prompts = self.prefiller.stats()
        assert prompts.leases.held == 0, "a prompt that is done has not changed hands"
        assert len(self._prompts) == prompts.waiting + prompts.running, f"{list(self._prompts)} are not all in prefill"
        if self.prefiller.idle and self.decoder.idle:
            self.decoder.assert_consistent()

    def _pass_on(self, request: Request, handoff: Handoff) -> None:
        timings = handoff.timings
        older = request.aged(timings.queue_seconds + timings.prefill_seconds)
        self.decoder.adopt(older, handoff, self.prefiller.surrender(handoff))
        self._prefilled += 1
