"""The decode engine: it takes `Handoff`s and returns `Chunk`s.

It receives its parts and never builds them, asks the clock for `now()` only, and never sleeps.
"""

from pathlib import Path

from decode.accounts import Accounts
from decode.batch import DecodeBatch
from decode.compatibility import HandoffCompatibility
from decode.handoff_reads import Incoming
from decode.inbox import Inbox
from decode.pace import Pace
from decode.plan import Planner
from decode.rate_forecast import RateForecast
from decode.record import Recorder
from decode.schedule import DecodeSchedule
from decode.sequence import SequenceOutput, WaitingSequence, dummy_sequences
from decode.step_result import StepObserver, StepResult
from decode.step_runner import StepRunner
from decode.step_timer import StepTimer
from engine.clock import Clock
from engine.config import DecodeConfig
from engine.device import peak_bytes
from engine.drafters import hidden_from_bytes
from engine.errors import DeadlineExceeded, DoesNotFit, Overloaded, Preempted
from engine.pages import Pages, Tables
from engine.stats import Forecast, Identity, ReplicaStats, Transfers
from engine.text import Text
from engine.transfer import Transfer
from engine.types import Chunk, Event, Handoff, Request, RequestEnded, Sampling


class Decoder:
    """One replica's decode engine. It is not thread-safe: one thread calls everything."""

    def __init__(
        self,
        *,
        pages: Pages,
        runner: StepRunner,
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
        self._runner = runner
        self._planner = planner
        self._pace = pace
        self._recorder = recorder
        self._transfer = transfer
        self._clock = clock
        self._text = text
        self._config = config
        self._poll_seconds = poll_seconds
        self._eos_token_ids = eos_token_ids
        self._step_tokens = 1 + runner.block_length
        self._compatibility = HandoffCompatibility(fingerprint, drafter_fingerprint)
        self._accounts = Accounts(runner.synthetic, pace.emulated)
        self._forecast = RateForecast(planner, config.max_requests)
        self._timer = StepTimer(clock, pace)
        counters = self._accounts.counters
        self._inbox = Inbox(pages=pages, transfer=transfer, clock=clock, config=config, counters=counters)
        self._schedule = DecodeSchedule(pages, config, self._step_tokens, eos_token_ids)
        self._observers: list[StepObserver] = [planner, self._forecast, recorder, self._accounts]
        self._first_chunks: list[Chunk] = []

    def add(self, request: Request, handoff: Handoff) -> None:
        """Take over a request whose prompt is in a prefill replica's pages. The next step returns its first token.

        Raises HandoffRefused for another model, DoesNotFit, and Overloaded (but not for a resumed request).
        """
        self._compatibility.check(handoff)
        self.check(request)
        if self._inbox.waiting >= self._config.max_waiting and not request.generated:
            waiting = f"decode.max_waiting: {self._inbox.waiting} handoffs wait already"
            raise Overloaded(waiting, retry_seconds=1.0)
        incoming = self._receive(request, handoff)
        if incoming.sequence.finish is None:
            self._inbox.add(incoming)
        else:
            self._inbox.decline(incoming)

    def adopt(self, request: Request, handoff: Handoff, tables: Tables) -> None:
        """Take over a request, and its `tables`, that was prefilled in the pages of this engine.

        The request has passed `check`, and its prompt no longer counts among the requests that hold pages.
        """
        incoming = self._receive(request, handoff)
        incoming.tables = tables
        incoming.read_started = incoming.read_ended = incoming.arrived
        if incoming.sequence.finish is None:
            self._admit(incoming, incoming.arrived)
        else:
            self._pages.release(tables)

    def check(self, request: Request) -> None:
        """Raises DoesNotFit if the request needs more pages than there are."""
        num_tokens = request.max_total_tokens + self._runner.block_length
        if shortfall := self._pages.shortfall(self._pages.peak_pages(num_tokens, self._step_tokens)):
            raise DoesNotFit(f"max_tokens: {request.max_total_tokens} tokens in all, {shortfall} (decode.cache_bytes)")

    def cancel(self, request_id: str) -> None:
        """Remove a request in any state, and free its pages. Unknown ids are ignored."""
        self._first_chunks = [chunk for chunk in self._first_chunks if chunk.request_id != request_id]
        if self._schedule.remove(request_id) or self._inbox.cancel(request_id):
            self._accounts.cancelled(request_id)

    def step(self) -> list[Event]:
        """Admit what has arrived; then give every running request a token, and more where drafts are accepted."""
        began, computed = self._clock.now(), self._runner.computing.seconds
        events = self.admit()
        self._schedule.make_room(self._inbox.with_pages)
        events += self.pending_events()
        if batch := self._schedule.next():
            events += self._decode(batch)
            self._accounts.took(self._clock.now() - began, self._runner.computing.seconds - computed)
        return events

    def _decode(self, batch: DecodeBatch) -> list[Event]:
        self._timer.begin()
        load = batch.load(self._timer.overhead_seconds)
        block = self._runner.draft(batch, self._planner.drafts(load))
        self._timer.drafted(load, block)
        lengths = self._planner.plan(block, load) if block.length else [0] * len(batch)
        self._timer.planned()
        tokens = self._runner.verify(batch, block, lengths)
        result = StepResult(batch, load, block, lengths, tokens, self._timer.verified(load, lengths))
        for observer in self._observers:
            observer.observe(result)
        events = self._accounts.committed(result, self._schedule.commit(result))
        if not self._schedule.running:
            self._timer.pause()
        return events

    @property
    def record_file(self) -> Path | None:
        """The file that its steps are recorded in, if they are."""
        return self._recorder.file

    def close(self) -> None:
        """Write the recorded steps. No step may follow."""
        self._recorder.close()

    def admit(self) -> list[Event]:
        """Let requests run whose pages have been read. Return first tokens, and requests that were lost or are late."""
        events, now = self.pending_events(), self._clock.now()
        for sequence in (*self._schedule.overdue(now), *self._inbox.overdue(now)):
            self._accounts.failed(sequence.id)
            reason = f"{sequence.id} had not finished {sequence.request.seconds_left} s after it came to decode"
            events.append(RequestEnded(request_id=sequence.id, error=DeadlineExceeded(reason)))
        admitted, ended = self._inbox.poll(self.spare_tokens)
        for lost in ended:
            self._accounts.failed(lost.request_id)
        for incoming in admitted:
            self._admit(incoming, now)
        return events + ended

    def pending_events(self) -> list[Event]:
        """Return the first tokens of new requests, and the requests that were preempted."""
        events: list[Event] = [*self._first_chunks]
        self._first_chunks = []
        for sequence in self._schedule.evicted():
            self._accounts.preempted(sequence.id)
            reason = f"{sequence.id} gave up its pages after {sequence.output.num_generated} tokens"
            events.append(RequestEnded(request_id=sequence.id, error=Preempted(reason)))
        return events

    def warm_up(self) -> None:
        """Run one step on pages of its own, so that no request pays for first-time costs."""
        sampling = Sampling(temperature=1.0, top_p=0.9)
        for sequence in dummy_sequences(self._pages, self._text, 1, self._step_tokens, 1, sampling):
            batch = DecodeBatch((sequence,), self._pages, self._eos_token_ids)
            block = self._runner.draft(batch, self._step_tokens - 1)
            self._runner.verify(batch, block, [block.length])
            self._pages.release(sequence.tables)

    @property
    def idle(self) -> bool:
        """Return whether no request here holds pages or waits for them."""
        return not self._schedule.running and not len(self._inbox)

    @property
    def spare_tokens(self) -> int:
        """The tokens for which a new request needs room beyond its own, so that it is not preempted at once."""
        return self._step_tokens + self._pages.layout.page_tokens

    def next_deadline(self) -> float | None:
        """Return when `step` should be called next, on the engine's clock; None if there is nothing to do."""
        now = self._clock.now()
        if self._schedule.running or self._first_chunks:
            return now
        return now + self._poll_seconds if len(self._inbox) else None

    def stats(self) -> ReplicaStats:
        inbox, forecast = self._inbox, self._forecast
        return ReplicaStats(
            identity=Identity(
                role="decode",
                agent=self._transfer.entry.name,
                emulated=self._pace.emulated,
                synthetic=self._runner.synthetic,
            ),
            waiting=len(inbox),
            running=len(self._schedule.running),
            max_requests=self._config.max_requests,
            peak_bytes=peak_bytes(self._pages.store.device),
            counters=self._accounts.counters.snapshot(),
            pages=self._pages.counts(),
            forecast=Forecast(
                request_rates=forecast.rates(),
                accepted_length=forecast.accepted_length,
                verified_per_step=forecast.budget,
                marginal_rate=forecast.marginal_rate(),
            ),
            transfers=Transfers(
                reads=inbox.reads,
                reads_lost=inbox.reads_lost,
                moved_bytes=inbox.moved_bytes,
                moved_pages=inbox.moved_pages,
                transfer_seconds=inbox.transfer_seconds,
            ),
        )

    def assert_consistent(self) -> None:
        """Assert that every page is in one state, and that an idle engine holds none."""
        self._pages.assert_consistent()
        if self.idle:
            self._pages.assert_idle()
            self._accounts.assert_idle()

    def _receive(self, request: Request, handoff: Handoff) -> Incoming:
        """Commit the first token of a request, and return its handoff without pages."""
        now = self._clock.now()
        sequence = WaitingSequence(request, now, SequenceOutput(request, self._text, self._eos_token_ids))
        with_drafter = self._compatibility.share_drafter(handoff)
        if with_drafter:
            sequence.drafter_hidden = hidden_from_bytes(handoff.drafter_hidden)
        else:
            sequence.context_from = handoff.num_tokens
        chunk = sequence.output.commit([handoff.first])
        self._first_chunks.append(self._accounts.received(chunk, with_drafter))
        # pages without a usable drafter part are only shared with others of their kind
        salt = request.cache_salt if with_drafter else f"{request.cache_salt}\0without drafter"
        return Incoming(
            handoff=handoff,
            sequence=sequence,
            tables=self._pages.open(handoff.nonce, salt),
            arrived=now,
            renew_at=now + handoff.lease_seconds / 3,
            deadline=now + handoff.lease_seconds,
            with_drafter=with_drafter,
        )

    def _admit(self, incoming: Incoming, now: float) -> None:
        self._schedule.join(incoming.sequence.with_pages(incoming.tables))
        self._accounts.admitted(incoming, now)
