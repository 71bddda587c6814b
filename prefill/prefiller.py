"""The prefill engine: it takes `Request`s, returns `Handoff`s, and keeps pages under a lease until they are read.

It receives its parts and never builds them, asks the clock for `now()` only, and never sleeps.
"""

import secrets
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from engine.backend import Backend
from engine.batch import Batch
from engine.clock import Clock, Stopwatch
from engine.config import PrefillConfig
from engine.device import peak_bytes
from engine.drafters import Drafter, hidden_to_bytes
from engine.errors import DeadlineExceeded, DoesNotFit, ModelFailure, Overloaded
from engine.logits_processors import LogitsProcessors, TokenHistory
from engine.pages import Pages, Tables
from engine.sampling import NO_TOKEN, SamplingBatch, sample
from engine.stats import Counters, Identity, Leases, PrefillQueue, ReplicaStats
from engine.transfer import LeaseCommand, LeaseMessage, Transfer
from engine.types import Event, Handoff, PrefillTimings, Request, RequestEnded, SampledToken, Sampling, StopRules
from prefill.lease import LeaseState, LeaseTable
from prefill.schedule import Prompt, PromptChunk, PromptSchedule, WaitingPrompt
from prefill.step_time import StepTimeEstimator


class Prefiller:
    """One replica's prefill engine. It is not thread-safe: one thread calls everything."""

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
        drafter_fingerprint: dict[str, str] | None,
        eos_token_ids: tuple[int, ...],
        section: str = "prefill",
        spare_tokens: int = 0,
    ) -> None:
        """`section` is the part of the configuration that errors name. A prompt starts if there is room for
        `spare_tokens` more than its own."""
        self._pages = pages
        self._backend = backend
        self._drafter = drafter
        self._transfer = transfer
        self._clock = clock
        self._max_waiting = config.max_waiting
        self._step_times = StepTimeEstimator(config.chunk_tokens)
        self._section = section
        self._poll_seconds = poll_seconds
        self._fingerprint = fingerprint
        self._drafter_fingerprint = drafter_fingerprint
        self._eos_token_ids = eos_token_ids
        self._counters = Counters()
        self._computing = Stopwatch(clock)
        self._schedule = PromptSchedule(
            pages, config.chunk_tokens, config.max_requests, self._counters, drafter.keeps_hidden, spare_tokens
        )
        self._leases = LeaseTable(pages, config.lease_seconds)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises DoesNotFit if it needs more pages than there are, and Overloaded (but not for a resumed request).
        """
        needed = self._pages.peak_pages(request.num_tokens, self._schedule.chunk_tokens)
        if shortfall := self._pages.shortfall(needed):
            raise DoesNotFit(f"prompt: {request.num_tokens} tokens {shortfall} ({self._section}.cache_bytes)")
        if len(self._schedule.waiting) >= self._max_waiting and not request.generated:
            waiting = f"{self._section}.max_waiting: {self._max_waiting} prompts wait already"
            raise Overloaded(waiting, retry_seconds=1.0)
        self._schedule.add(WaitingPrompt(request, arrived=self._clock.now()))
        self._counters.requests += 1

    def cancel(self, request_id: str) -> None:
        """Remove a request in any state, and free its pages. Unknown ids are ignored."""
        if self._schedule.remove(request_id) or self._leases.cancel(request_id, self._clock.now()):
            self._counters.cancelled += 1

    def surrender(self, handoff: Handoff) -> Tables:
        """End the lease of a handoff that was just offered, and return its tables to an engine over the same pages."""
        return self._leases.hand_over(handoff.nonce, self._clock.now())

    def step(self) -> list[Event]:
        """Answer readers, let leases and requests expire, and compute one chunk of tokens."""
        began, computed = self._clock.now(), self._computing.seconds
        events = self._answer() + self._expire()
        chunks = self._schedule.next(self._clock.now())
        if not chunks:
            return events
        batch = Batch.of([chunk.row for chunk in chunks], self._pages.layout, self._pages.store.device)
        with self._computing:
            output = self._backend.forward(batch)
            self._absorb(chunks, batch, output.taps)
        events += self._advance(chunks, output.logits)
        seconds = self._clock.now() - began
        self._step_times.observe(sum(chunk.num_tokens for chunk in chunks), seconds)
        self._counters.step_seconds += seconds
        self._counters.compute_seconds += self._computing.seconds - computed
        return events

    def warm_up(self) -> None:
        """Compute a whole chunk and a single token, so that no request pays for first-time costs; then do so again, to
        measure their times."""
        capacity = min(pool.num_pages for pool in self._pages.pools.values()) * self._pages.layout.page_tokens
        chunk_tokens = min(self._schedule.chunk_tokens, capacity - 1)  # the first generated token needs room, too
        for num_tokens in (chunk_tokens, 1, chunk_tokens, 1):
            self._pages.forget_cached()
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
            if self._counters.steps == 2:
                self._step_times = StepTimeEstimator(self._schedule.chunk_tokens)
        self._pages.forget_cached()
        self._counters.reset()

    @property
    def idle(self) -> bool:
        """Return whether no request here holds pages."""
        return not self._schedule.running and not self._leases

    def next_deadline(self) -> float | None:
        """Return when `step` should be called next, on the engine's clock; None if there is nothing to do."""
        now = self._clock.now()
        if self._schedule.running or (self._schedule.waiting and not self._leases and not self._pages.queue.holding):
            return now
        return now + self._poll_seconds if self._leases or self._schedule.waiting else None

    def stats(self) -> ReplicaStats:
        return ReplicaStats(
            identity=Identity(role="prefill", agent=self._transfer.entry.name),
            waiting=len(self._schedule.waiting),
            running=len(self._schedule.running),
            max_requests=self._schedule.max_requests,
            peak_bytes=peak_bytes(self._pages.store.device),
            counters=self._counters.snapshot(),
            pages=self._pages.counts(),
            prefill_queue=PrefillQueue(
                queued_tokens=self._schedule.queued_tokens(),
                min_step_seconds=self._step_times.seconds(1),
                tokens_per_second=self._step_times.tokens_per_second,
            ),
            leases=Leases(held=len(self._leases), expired=self._leases.ended[LeaseState.EXPIRED]),
        )

    def assert_consistent(self) -> None:
        """Assert that every page is in one state, and that an idle engine holds none."""
        self._pages.assert_consistent()
        if self.idle:
            self._pages.assert_idle()

    def _answer(self) -> list[Event]:
        now = self._clock.now()
        for peer, message in self._transfer.notifications():
            if message.held is not None:
                continue  # it is an answer, and prefill never asks
            apply = self._leases.renew if message.command == LeaseCommand.RENEW else self._leases.release
            held = apply(message.nonce, now)
            self._transfer.notify(peer, LeaseMessage(command=message.command, nonce=message.nonce, held=held))
        return [*self._leases.pending_events()]

    def _expire(self) -> list[Event]:
        events: list[Event] = []
        now = self._clock.now()
        for request in self._schedule.overdue(now):
            self._counters.failed += 1
            reason = f"{request.id} was not prefilled {request.seconds_left} s after it arrived"
            events.append(RequestEnded(request_id=request.id, error=DeadlineExceeded(reason)))
        self._counters.failed += self._leases.expire(now)
        return events + self._leases.pending_events()

    def _absorb(self, chunks: list[PromptChunk], batch: Batch, taps: dict[int, Tensor]) -> None:
        """Write the drafter's context of these tokens, and keep its state after the last one of each chunk."""
        ends = list(accumulate(chunk.num_logits for chunk in chunks))
        last_R = batch.logits_index[[end - 1 for end in ends]]
        rows = self._drafter.absorb(batch, taps, [chunk.prompt.drafter_hidden for chunk in chunks], last_R)
        for chunk, row in zip(chunks, rows, strict=True):
            chunk.prompt.drafter_hidden = row

    def _advance(self, chunks: list[PromptChunk], logits: Tensor) -> list[Event]:
        """Mark the chunks as computed, let others find their full pages, and offer the prompts that are finished."""
        self._counters.steps += 1
        self._counters.tokens += sum(chunk.num_tokens for chunk in chunks)
        rows = logits.split([chunk.num_logits for chunk in chunks])
        firsts = self._sample(chunks, torch.stack([logits_TV[-1] for logits_TV in rows]))
        events: list[Event] = []
        for chunk, first, logits_TV in zip(chunks, firsts, rows, strict=True):
            prompt = chunk.prompt
            if first.token == NO_TOKEN:
                events.append(self._fail(prompt, chunk.end))
                continue
            if prompt.request.prompt_logprobs:
                prompt.logprobs += _logprobs(logits_TV, prompt.request.tokens[prompt.computed + 1 : chunk.end + 1])
            prompt.computed = chunk.end
            self._pages.publish(prompt.tables, prompt.request.tokens, prompt.computed)
            if not prompt.remaining:
                events.append(self._offer(prompt, first))
        return events

    def _sample(self, chunks: list[PromptChunk], logits_RV: Tensor) -> list[SampledToken]:
        """Sample the token after each chunk. Before the last chunk it only shows that logits are finite."""
        requests = [chunk.prompt.request for chunk in chunks]
        rows = [(r.sampling if c.is_last else Sampling(), r.num_tokens) for c, r in zip(chunks, requests, strict=True)]
        draws = [TokenHistory(r, r.tokens) if c.is_last else None for c, r in zip(chunks, requests, strict=True)]
        logits_processors = LogitsProcessors.of(draws, self._eos_token_ids, logits_RV.device)
        draws_R = sample(logits_RV, SamplingBatch.of(rows, logits_RV.device), logits_processors)
        with self._computing:  # it waits for the model
            return draws_R.to_host()

    def _fail(self, prompt: Prompt, num_tokens: int) -> RequestEnded:
        self._schedule.finish(prompt)
        self._pages.clear(prompt.tables, published=True)
        self._pages.release(prompt.tables)
        self._counters.failed += 1
        reason = f"the model gave NaN or infinity in the first {num_tokens} tokens of {prompt.request.id}"
        return RequestEnded(request_id=prompt.request.id, error=ModelFailure(reason))

    def _offer(self, prompt: Prompt, first: SampledToken) -> Handoff:
        now = self._clock.now()
        self._schedule.finish(prompt)
        self._pages.trim(prompt.tables, prompt.computed)
        nonce = secrets.token_hex(16)
        self._leases.grant(nonce, prompt.request.id, prompt.tables, now)
        return Handoff(
            request_id=prompt.request.id,
            nonce=nonce,
            num_tokens=prompt.computed,
            first=first,
            spans=prompt.tables.spans,
            agents=(self._transfer.entry,),
            target_fingerprint=self._fingerprint,
            drafter_fingerprint=self._drafter_fingerprint,
            lease_seconds=self._leases.term_seconds,
            timings=PrefillTimings(
                queue_seconds=prompt.started - prompt.waiting.arrived, prefill_seconds=now - prompt.started
            ),
            prompt_logprobs=tuple(prompt.logprobs),
            cached_tokens=prompt.known,
            drafter_hidden=hidden_to_bytes(prompt.drafter_hidden),
        )


def _logprobs(logits_TV: Tensor, tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token by the row before it; the last row may have no token yet."""
    logprobs_TV = logits_TV[: len(tokens)].log_softmax(dim=-1)
    logprobs: list[float] = logprobs_TV.gather(-1, torch.tensor(tokens, device=logprobs_TV.device)[:, None])[
        :, 0
    ].tolist()
    return logprobs
