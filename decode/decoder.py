"""The decode engine: `Handoff` in, `Chunk`s out.

It receives its parts and never builds them, asks the clock for `now()` only, and never sleeps.
"""

from dataclasses import asdict, replace
from pathlib import Path

from decode.compatibility import HandoffCompatibility
from decode.handoff_reads import Incoming
from decode.inbox import Inbox
from decode.objective import Outcome
from decode.pace import Pace
from decode.plan import Planner
from decode.rate_forecast import RateForecast
from decode.record import Recorder
from decode.request_timings import NO_TIME, RequestTimings
from decode.schedule import DecodeBatch, DecodeSchedule, Step, StepTimestamps
from decode.sequence import Sequence, stand_ins
from decode.step_runner import StepRunner
from engine.clock import Clock
from engine.config import DecodeConfig
from engine.device import peak_bytes
from engine.drafters import hidden_from_bytes
from engine.errors import DeadlineExceeded, DoesNotFit, Overloaded, Preempted
from engine.facts import Acceptance, Counters, ReplicaStats
from engine.pages import Pages, Tables
from engine.text import Text
from engine.transfer import Transfer
from engine.types import Chunk, Event, Handoff, Request, RequestEnded, Sampling

OVERHEAD_EMA_WEIGHT = 0.1  # the share of the newest step in the mean of what steps take besides


class Decoder:
    """One replica's decode engine. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        *,
        pages: Pages,
        rounds: StepRunner,
        planner: Planner,
        pace: Pace,
        recorder: Recorder,
        transfer: Transfer,
        clock: Clock,
        text: Text,
        config: DecodeConfig,
        poll_seconds: float,
        fingerprint: dict[str, str],
        drafter_fingerprint: dict[str, str] | None,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._pages = pages
        self._rounds = rounds
        self._planner = planner
        self._pace = pace
        self._prospects = RateForecast(planner, config.max_requests)
        self._recorder = recorder
        self._transfer = transfer
        self._clock = clock
        self._text = text
        self._config = config
        self._poll_seconds = poll_seconds
        self._peers = HandoffCompatibility(fingerprint, drafter_fingerprint)
        self._eos_token_ids = eos_token_ids
        self._step_tokens = 1 + rounds.block_length
        self._counters = Counters()
        self._inbox = Inbox(pages=pages, transfer=transfer, clock=clock, config=config, counters=self._counters)
        self._schedule = DecodeSchedule(pages, config, self._step_tokens, eos_token_ids)
        self._ended: float | None = None  # the last step, if this one follows it at once
        self._overhead_seconds = 0.0
        self._arrivals: dict[str, RequestTimings] = {}
        self._first_chunks: list[Chunk] = []

    def add(self, request: Request, handoff: Handoff) -> None:
        """Take over a request whose prompt is in a prefill replica's pages. Its first token goes out at once.

        Raises HandoffRefused for another model, DoesNotFit, Overloaded (but not for a request that comes back).
        """
        self._peers.check(handoff)
        self.check(request)
        if self._inbox.waiting >= self._config.max_waiting and not request.generated:
            waiting = f"decode.max_waiting: {self._inbox.waiting} handoffs wait already"
            raise Overloaded(waiting, retry_seconds=1.0)
        incoming = self._begun(request, handoff)
        if incoming.sequence.finish is None:
            self._inbox.add(incoming)
        else:
            self._inbox.decline(incoming)

    def adopt(self, request: Request, handoff: Handoff, tables: Tables) -> None:
        """Take over a request that was prefilled in the very pages of this engine: they change hands as they are.
        It has passed `check`, and a prompt that left with it made a seat free."""
        incoming, now = self._begun(request, handoff), self._clock.now()
        incoming.read_started = incoming.read_ended = now
        incoming.sequence.tables = tables
        if incoming.sequence.finish is None:
            self._join(incoming, now)
        else:
            self._pages.release(tables)

    def check(self, request: Request) -> None:
        """Raises DoesNotFit if the request needs more pages than there are."""
        reach = request.max_total_tokens + self._rounds.block_length
        demand = self._pages.demand(reach, self._step_tokens)
        if shortfall := self._pages.shortfall(demand):
            raise DoesNotFit(f"max_tokens: {request.max_total_tokens} tokens in all, {shortfall} (decode.cache_bytes)")

    def cancel(self, request_id: str) -> None:
        """Forget a request in whatever state it is, and free its pages. Unknown ids are fine."""
        self._first_chunks = [chunk for chunk in self._first_chunks if chunk.request_id != request_id]
        self._arrivals.pop(request_id, None)
        if self._schedule.remove(request_id) or self._inbox.cancel(request_id):
            self._counters.cancelled += 1

    def step(self) -> list[Event]:
        """Admit what has arrived, then one token for every running request, and more where drafts are accepted."""
        entered, computed = self._clock.now(), self._rounds.computing.seconds
        events = self.admit()
        self._schedule.make_room(self._inbox.coming)
        events += self.pending_events()
        batch = self._schedule.next()
        if not batch:
            return events
        began = self._clock.now()
        if self._ended is not None:
            self._overhead_seconds += OVERHEAD_EMA_WEIGHT * (began - self._ended - self._overhead_seconds)
        demand = batch.demand(self._overhead_seconds)
        most = self._planner.drafts(demand)
        block = self._rounds.draft(batch, most)
        if most:
            self._pace.drafted(began, len(batch), demand.context)
        drafted = self._clock.now()
        lengths = self._planner.plan(block, demand) if most else [0] * len(batch)
        planned = self._clock.now()
        drawn = self._rounds.verify(batch, block, lengths)
        overran = self._pace.verified(planned, len(batch), len(batch) + sum(lengths), demand.context)
        self._ended = self._clock.now()
        accepted = [len(tokens) - 1 for tokens in drawn]
        outcome = Outcome(lengths, accepted, most > 0, self._ended - began)
        self._planner.observe(demand, outcome)
        self._prospects.observe(demand, outcome)
        step = Step(batch, block, lengths, drawn, StepTimestamps(began, drafted, planned, self._ended))
        self._recorder.record(step)
        self._counters.overruns += overran
        for sequence in batch.sequences:
            self._arrivals[sequence.id].overruns += overran
        events += self._counted(step, self._schedule.commit(step))
        if not self._schedule.running:
            self._ended = None
        self._counters.step_seconds += self._clock.now() - entered
        self._counters.compute_seconds += self._rounds.computing.seconds - computed
        return events

    @property
    def record_file(self) -> Path | None:
        """Where its steps are recorded, if they are."""
        return self._recorder.file

    def close(self) -> None:
        """No more steps: keep what was recorded of them."""
        self._recorder.close()

    def admit(self) -> list[Event]:
        """First tokens of new requests, requests that lost their pages or time; what was read joins the running."""
        events, now = self.pending_events(), self._clock.now()
        events += [self._late(sequence) for sequence in (*self._schedule.overdue(now), *self._inbox.overdue(now))]
        admitted, ended = self._inbox.poll(self.spare_tokens)
        self._counters.failed += len(ended)
        for incoming in admitted:
            self._join(incoming, now)
        return events + ended

    def pending_events(self) -> list[Event]:
        """First tokens of new requests, and requests that gave up their pages: they go back to the gateway."""
        events: list[Event] = [*self._first_chunks]
        self._first_chunks = []
        for sequence in self._schedule.evicted():
            self._counters.preempted += 1
            del self._arrivals[sequence.id]
            reason = f"{sequence.id} gave up its pages after {sequence.num_generated} tokens"
            events.append(RequestEnded(request_id=sequence.id, error=Preempted(reason)))
        return events

    def warm_up(self) -> None:
        """One step on pages of its own, so that no request pays for first times."""
        sampling = Sampling(temperature=1.0, top_p=0.9)
        for sequence in stand_ins(self._pages, self._text, 1, self._step_tokens, 1, sampling):
            assert sequence.tables is not None
            batch = DecodeBatch((sequence,), self._pages, self._eos_token_ids)
            block = self._rounds.draft(batch, self._step_tokens - 1)
            self._rounds.verify(batch, block, [block.length])
            self._pages.release(sequence.tables)

    @property
    def idle(self) -> bool:
        """Whether nothing here has pages, or waits for some."""
        return not self._schedule.running and not len(self._inbox)

    @property
    def spare_tokens(self) -> int:
        """What a new request needs room for besides its own tokens, so that it is not preempted at once."""
        return self._step_tokens + self._pages.layout.page_tokens

    def next_deadline(self) -> float | None:
        """When `step` wants to be called next, on the clock; None if nothing is under way."""
        now = self._clock.now()
        if self._schedule.running or self._first_chunks:
            return now
        return now + self._poll_seconds if len(self._inbox) else None

    def stats(self) -> ReplicaStats:
        """Where things stand."""
        inbox = self._inbox
        return ReplicaStats(
            role="decode",
            agent=self._transfer.entry.name,
            waiting=len(inbox),
            running=len(self._schedule.running),
            **asdict(self._counters),
            synthetic=self._rounds.synthetic,
            emulated=self._pace.emulated,
            peak_bytes=peak_bytes(self._pages.store.device),
            max_requests=self._config.max_requests,
            rates=self._prospects.rates(),
            accepted_length=self._prospects.accepted_length,
            budget=self._prospects.budget,
            marginal_rate=self._prospects.marginal_rate(),
            pages=self._pages.counts(),
            reads=inbox.reads,
            reads_lost=inbox.reads_lost,
            moved_bytes=inbox.moved_bytes,
            moved_pages=inbox.moved_pages,
            transfer_seconds=inbox.transfer_seconds,
        )

    def assert_consistent(self) -> None:
        """Every page is in one state; with nothing under way, all are free."""
        self._pages.assert_consistent()
        if self.idle:
            self._pages.assert_idle()
            assert not self._arrivals, f"requests that ended are still remembered: {list(self._arrivals)}"

    def _begun(self, request: Request, handoff: Handoff) -> Incoming:
        """The request after its first token, which is as good as said."""
        now = self._clock.now()
        sequence = Sequence(request, self._text, self._eos_token_ids, now)
        with_drafter = self._peers.share_drafter(handoff)
        if with_drafter:
            sequence.drafter_hidden = hidden_from_bytes(handoff.drafter_hidden)
        else:
            sequence.context_from = handoff.num_tokens
            self._counters.handoffs_without_context += 1
        self._counters.requests += 1
        self._counters.tokens += 1
        chunk = sequence.commit([handoff.first])
        if chunk.finish is not None:
            chunk = replace(chunk, timings=NO_TIME, acceptance=Acceptance())
        self._first_chunks.append(chunk)
        return Incoming(
            handoff=handoff,
            sequence=sequence,
            arrived=now,
            renew_at=now + handoff.lease_seconds / 3,
            deadline=now + handoff.lease_seconds,
            with_drafter=with_drafter,
        )

    def _join(self, incoming: Incoming, now: float) -> None:
        """Its pages are here: it takes part in the next step."""
        self._schedule.join(incoming.sequence)
        self._schedule.publish(incoming.sequence)
        self._arrivals[incoming.sequence.id] = RequestTimings(incoming, now)

    def _late(self, sequence: Sequence) -> RequestEnded:
        self._counters.failed += 1
        self._arrivals.pop(sequence.id, None)
        reason = f"{sequence.id} was not finished {sequence.request.seconds_left} s after it came to decode"
        return RequestEnded(request_id=sequence.id, error=DeadlineExceeded(reason))

    def _counted(self, step: Step, events: list[Chunk | RequestEnded]) -> list[Event]:
        """Count the step; whoever has ended leaves, a finished one with its timings and what became of its drafts."""
        self._counters.steps += 1
        self._counters.draft_seconds += step.timestamps.draft_seconds
        self._counters.plan_seconds += step.timestamps.plan_seconds
        self._counters.verify_seconds += step.timestamps.verify_seconds
        told: list[Event] = []
        for sequence, verified, event in zip(step.batch.sequences, step.lengths, events, strict=True):
            accepted = len(event.tokens) - 1 if isinstance(event, Chunk) else 0
            self._counters.count(step.block.length, verified, accepted)
            sequence.acceptance.count(step.block.length, verified, accepted)
            if isinstance(event, RequestEnded):
                self._counters.failed += 1
                del self._arrivals[sequence.id]
            else:
                self._counters.tokens += len(event.tokens)
                if event.finish is not None:
                    event = self._closed(event, sequence, step.timestamps.verified)
            told.append(event)
        return told

    def _closed(self, last: Chunk, sequence: Sequence, now: float) -> Chunk:
        """The last chunk of a request, with its account."""
        acceptance = replace(sequence.acceptance, synthetic=self._rounds.synthetic)
        timings = self._arrivals.pop(sequence.id).timings(now, self._pace.emulated)
        return replace(last, timings=timings, acceptance=acceptance)
