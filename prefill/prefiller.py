"""The prefill engine: `Request` in, `Handoff` out, and pages kept under a lease until they have been read.

It receives its parts and never builds them, asks the clock for `now()` only, and never sleeps.
"""

import secrets

from engine.backend import Backend, Output
from engine.batch import Batch
from engine.clock import Clock
from engine.config import PrefillConfig
from engine.drafters import Drafter
from engine.edits import Draw, Edits
from engine.errors import DoesNotFit, HandoffLost, ModelFailure, Overloaded
from engine.facts import Counters, ReplicaStats
from engine.pages import Pages
from engine.sampling import NO_TOKEN, SamplingBatch, sample
from engine.transfer import Message, Transfer, Verb
from engine.types import Ended, Event, Handoff, PrefillTimings, Request, Sampling, StopRules
from prefill.lease import LeaseEnd, LeaseTable
from prefill.schedule import Prompt, PromptChunk, PromptSchedule


class Prefiller:
    """One replica's prefill engine. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        *,
        pages: Pages,
        backend: Backend,
        drafter: Drafter,
        transfer: Transfer,
        clock: Clock,
        config: PrefillConfig,
        poll_seconds: float,
        fingerprint: dict[str, str],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._pages = pages
        self._backend = backend
        self._drafter = drafter
        self._transfer = transfer
        self._clock = clock
        self._max_waiting = config.max_waiting
        self._poll_seconds = poll_seconds
        self._fingerprint = fingerprint
        self._eos_token_ids = eos_token_ids
        self._schedule = PromptSchedule(pages, config.chunk_tokens, config.max_requests)
        self._leases = LeaseTable(config.lease_seconds)
        self._counters = Counters()

    def add(self, request: Request) -> None:
        """Queue a request. Raises Overloaded if too many wait, DoesNotFit if its pages could never be had."""
        demand = self._pages.demand(request.num_tokens, self._schedule.chunk_tokens)
        if shortfall := self._pages.shortfall(demand):
            raise DoesNotFit(f"prompt: {request.num_tokens} tokens {shortfall} (prefill.cache_bytes)")
        if len(self._schedule.waiting) >= self._max_waiting:
            raise Overloaded(f"prefill.max_waiting: {self._max_waiting} prompts wait already", retry_seconds=1.0)
        self._schedule.waiting.append(Prompt(request, arrived=self._clock.now()))
        self._counters.requests += 1

    def cancel(self, request_id: str) -> None:
        """Forget a request in whatever state it is, and free its pages. Unknown ids are fine."""
        if prompt := self._schedule.remove(request_id):
            if prompt.tables is not None:
                self._pages.release(prompt.tables)
            self._counters.cancelled += 1
        elif lease := self._leases.cancel(request_id):
            self._pages.release(lease.tables)
            self._counters.cancelled += 1

    def step(self) -> list[Event]:
        """Answer readers, let leases expire, and put one chunk of tokens through the model."""
        events = self._answer() + self._expire()
        chunks = self._schedule.next(self._clock.now())
        if not chunks:
            return events
        batch = Batch.of([chunk.row for chunk in chunks], self._pages.layout, self._pages.store.device)
        output = self._backend.forward(batch)
        self._drafter.absorb(batch, output.taps)
        return events + self._advance(chunks, output)

    def warm_up(self) -> None:
        """One whole chunk and one single token, so that no request pays for first times."""
        capacity = min(pool.num_pages for pool in self._pages.pools.values()) * self._pages.layout.page_tokens
        for num_tokens in (min(self._schedule.chunk_tokens, capacity), 1):
            request = Request(
                id=f"warm-up-{num_tokens}",
                prompt=(0,) * num_tokens,
                sampling=Sampling(temperature=1.0, top_p=0.9),
                stop=StopRules(max_tokens=1),
            )
            self.add(request)
            while not any(isinstance(event, Handoff) for event in self.step()):
                pass
            self.cancel(request.id)
        self._counters = Counters()

    def next_deadline(self) -> float | None:
        """When `step` wants to be called next, on the clock; None if nothing is under way."""
        now = self._clock.now()
        if self._schedule.running or (self._schedule.waiting and not self._leases):
            return now
        return now + self._poll_seconds if self._leases or self._schedule.waiting else None

    def stats(self) -> ReplicaStats:
        """Where things stand."""
        return ReplicaStats(
            role="prefill",
            agent=self._transfer.entry.name,
            waiting=len(self._schedule.waiting),
            running=len(self._schedule.running),
            **vars(self._counters),
            pages=self._pages.counts(),
            leases_held=len(self._leases),
            leases_expired=self._leases.ended[LeaseEnd.EXPIRED],
        )

    def assert_consistent(self) -> None:
        """Every page is in one state; with nothing under way, all are free."""
        self._pages.assert_consistent()
        if not self._schedule.running and not self._leases:
            self._pages.assert_idle()

    def _answer(self) -> list[Event]:
        events: list[Event] = []
        now = self._clock.now()
        for peer, message in self._transfer.notifications():
            if message.held is not None:
                continue  # an answer, and we asked nothing
            if message.verb == Verb.RENEW:
                held = self._leases.renew(message.nonce, now)
            else:
                lease = self._leases.release(message.nonce, now)
                held = lease is not None
                if lease is not None:
                    self._pages.release(lease.tables)
                    events.append(Ended(request_id=lease.request_id))
            self._transfer.notify(peer, Message(verb=message.verb, nonce=message.nonce, held=held))
        return events

    def _expire(self) -> list[Event]:
        events: list[Event] = []
        for lease in self._leases.expire(self._clock.now()):
            self._pages.release(lease.tables)
            self._counters.failed += 1
            reason = f"nobody read the pages of {lease.request_id} within {self._leases.term_seconds} s"
            events.append(Ended(request_id=lease.request_id, error=HandoffLost(reason)))
        return events

    def _advance(self, chunks: list[PromptChunk], output: Output) -> list[Event]:
        """Count the chunks as computed, and offer what is complete."""
        self._counters.steps += 1
        self._counters.tokens += sum(chunk.num_tokens for chunk in chunks)
        done = [chunk.prompt for chunk in chunks if chunk.is_last]
        for chunk in chunks:
            chunk.prompt.computed = chunk.end
        if not done:
            return []
        device = output.logits.device
        rows = [(prompt.request.sampling, prompt.request.num_tokens) for prompt in done]
        edits = Edits.of([Draw(p.request, p.request.tokens) for p in done], self._eos_token_ids, device)
        tokens, logprobs = sample(output.logits, SamplingBatch.of(rows, device), edits)
        firsts = zip(done, tokens.tolist(), logprobs.tolist(), strict=True)
        return [
            self._broken(prompt) if token == NO_TOKEN else self._offer(prompt, token, logprob)
            for prompt, token, logprob in firsts
        ]

    def _broken(self, prompt: Prompt) -> Ended:
        assert prompt.tables is not None
        self._schedule.running.remove(prompt)
        self._pages.clear(prompt.tables)
        self._pages.release(prompt.tables)
        self._counters.failed += 1
        reason = f"the model gave NaN or infinity after {prompt.computed} tokens of {prompt.request.id}"
        return Ended(request_id=prompt.request.id, error=ModelFailure(reason))

    def _offer(self, prompt: Prompt, first_token: int, first_logprob: float) -> Handoff:
        assert prompt.tables is not None and prompt.started is not None
        now = self._clock.now()
        self._schedule.running.remove(prompt)
        prompt.tables.trim(prompt.computed)
        nonce = secrets.token_hex(16)
        self._leases.grant(nonce, prompt.request.id, prompt.tables, now)
        return Handoff(
            request_id=prompt.request.id,
            nonce=nonce,
            num_tokens=prompt.computed,
            first_token=first_token,
            first_logprob=first_logprob,
            spans=prompt.tables.spans,
            agents=(self._transfer.entry,),
            target_fingerprint=self._fingerprint,
            drafter_fingerprint=None,
            lease_seconds=self._leases.term_seconds,
            timings=PrefillTimings(queue_seconds=prompt.started - prompt.arrived, prefill_seconds=now - prompt.started),
        )
