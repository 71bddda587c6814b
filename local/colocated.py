"""A decode replica that prefills some requests itself: a Decoder and a Prefiller over the same pages.

    serve(request)           prefiller: chunk, chunk, Handoff ── pages change hands as they are ──┐
    add(request, handoff)    decoder: pages read over the transfer ───────────────────────────────┴── Chunk, Chunk, ...

Both engines share one page queue (engine/pages/page_queue.py): the precedence of a request decides when it gets pages
and becomes one of the `max_requests`, and which request is preempted when pages run out, whichever engine it is in.
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
        self._prompts: dict[str, Request] = {}  # requests in the prefiller
        self._prefilled = 0

    def add(self, request: Request, handoff: Handoff) -> None:
        """Take over a request whose prompt is in a prefill replica's pages, as `Decoder.add` does."""
        self.decoder.add(request, handoff)

    def serve(self, request: Request) -> None:
        """Take a request from its prompt to its last token: `step` returns its `Handoff`, then its `Chunk`s.

        Raises DoesNotFit, and Overloaded if too many prompts wait here and this one was not preempted before.
        """
        self.decoder.check(request)
        self.prefiller.add(request)
        self._prompts[request.id] = request

    def cancel(self, request_id: str) -> None:
        """Drop a request in any state and free its pages. Unknown ids are ignored."""
        self._prompts.pop(request_id, None)
        self.prefiller.cancel(request_id)
        self.decoder.cancel(request_id)

    def step(self) -> list[Event]:
        """Run one decode step, then prefill one chunk. A prompt that is complete gives its first token at once, and the
        next decode step continues it in its pages."""
        events = self.decoder.step()
        for event in self.prefiller.step():
            request = self._prompts.pop(event.request_id)
            if isinstance(event, Handoff):
                self._pass_on(request, event)
            events.append(event)
        return events + self.decoder.pending_events()

    def warm_up(self) -> None:
        self.prefiller.warm_up()
        self.decoder.warm_up()

    @property
    def record_file(self) -> Path | None:
        """Return the file where decode steps are recorded; None if they are not."""
        return self.decoder.record_file

    def close(self) -> None:
        self.decoder.close()

    def next_deadline(self) -> float | None:
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
        """Raise AssertionError unless every page is in one state and every prompt in one engine, and all pages are free
        if no request is here."""
        self._pages.assert_consistent()
        prompts = self.prefiller.stats()
        assert prompts.leases.held == 0, "a complete prompt is still in the prefiller"
        assert len(self._prompts) == prompts.waiting + prompts.running, f"{list(self._prompts)} are not all in prefill"
        if self.prefiller.idle and self.decoder.idle:
            self.decoder.assert_consistent()

    def _pass_on(self, request: Request, handoff: Handoff) -> None:
        timings = handoff.timings
        older = request.aged(timings.queue_seconds + timings.prefill_seconds)
        self.decoder.adopt(older, handoff, self.prefiller.surrender(handoff))
        self._prefilled += 1
