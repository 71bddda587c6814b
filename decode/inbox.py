"""Handoffs on their way in: pages read over the transfer, leases renewed and released.

`handoff_reads.py` says what may happen; this does it. A handoff leaves as an admitted `Incoming`, or as `RequestEnded`.
"""

from decode.handoff_reads import Incoming, ReadEvent, ReadPhase
from decode.sequence import Sequence
from engine.clock import Clock
from engine.config import DecodeConfig
from engine.errors import HandoffLost
from engine.facts import Counters
from engine.pages import Pages, Precedence, Tables
from engine.transfer import LeaseCommand, LeaseMessage, PageRead, ReadState, Transfer
from engine.types import RequestEnded

P, E = ReadPhase, ReadEvent
READ_EVENTS = {ReadState.DONE: E.READ_DONE, ReadState.FAILED: E.READ_FAILED}


class Inbox:
    """All handoffs that are not decoding yet, oldest first."""

    def __init__(
        self, *, pages: Pages, transfer: Transfer, clock: Clock, config: DecodeConfig, counters: Counters
    ) -> None:
        self._pages = pages
        self._transfer = transfer
        self._clock = clock
        self._config = config
        self._counters = counters
        self._incoming: dict[str, Incoming] = {}
        self._ended: list[RequestEnded] = []
        self.reads = self.reads_lost = 0
        self.moved_bytes = self.moved_pages = 0
        self.transfer_seconds = 0.0
        pages.queue.join(self)

    def __len__(self) -> int:
        return len(self._incoming)

    @property
    def waiting(self) -> int:
        return sum(incoming.phase == P.WAITING for incoming in self._incoming.values())

    @property
    def coming(self) -> list[Sequence]:
        """Requests that have pages and do not run yet."""
        with_pages = (P.READING, P.RELEASING, P.ADMITTED)
        return [incoming.sequence for incoming in self._incoming.values() if incoming.phase in with_pages]

    @property
    def holding(self) -> int:
        return len(self.coming)

    @property
    def first_waiting(self) -> Precedence | None:
        waiting = (i.sequence.precedence for i in self._incoming.values() if i.phase == P.WAITING)
        return min(waiting, default=None)

    @property
    def last_holding(self) -> None:
        """Bytes may still arrive in their pages: none can give them up at once."""
        return None

    def evict_last(self) -> None:
        raise AssertionError("nobody here can leave at once")

    def add(self, incoming: Incoming) -> None:
        self._transfer.connect(incoming.handoff.agents[0])
        self._incoming[incoming.handoff.nonce] = incoming

    def decline(self, incoming: Incoming) -> None:
        """Release a handoff whose pages nobody wants: the request has ended with its first token."""
        self._transfer.connect(incoming.handoff.agents[0])
        self._say(incoming, LeaseCommand.RELEASE)

    def cancel(self, request_id: str) -> bool:
        """Stop a request in whatever phase it is. False if it is not here."""
        for incoming in list(self._incoming.values()):
            if incoming.sequence.id == request_id and incoming.phase != P.DRAINING:
                return self._apply(incoming, E.CANCEL)
        return False

    def overdue(self, now: float) -> list[Sequence]:
        """Stop the requests whose deadline has passed, and return them."""
        on_their_way = [i for i in self._incoming.values() if i.phase != P.DRAINING]
        late = [incoming.sequence for incoming in on_their_way if incoming.sequence.deadline <= now]
        for sequence in late:
            self.cancel(sequence.id)
        return late

    def poll(self, spare_tokens: int) -> tuple[list[Incoming], list[RequestEnded]]:
        """Take messages, look at reads and start more, as many as may hold pages yet.

        Returns the handoffs whose pages are ours now, and the requests that lost theirs. `spare_tokens`: what a new
        request needs room for besides its own tokens, so that it is not preempted at once.
        """
        self._take_answers()
        for incoming in list(self._incoming.values()):
            self._watch(incoming)
        self._start(spare_tokens)
        admitted = [incoming for incoming in self._incoming.values() if incoming.phase == P.ADMITTED]
        for incoming in admitted:
            del self._incoming[incoming.handoff.nonce]
        ended, self._ended = self._ended, []
        return admitted, ended

    def _take_answers(self) -> None:
        now = self._clock.now()
        for _peer, message in self._transfer.notifications():
            incoming = self._incoming.get(message.nonce)
            if incoming is None or message.held is None:
                continue  # the answer to a request that is gone
            if not message.held:
                self._apply(incoming, E.NOT_HELD)
            elif message.command == LeaseCommand.RELEASE:
                self._apply(incoming, E.HELD)
            elif incoming.phase == P.WAITING:
                incoming.deadline = now + incoming.handoff.lease_seconds

    def _watch(self, incoming: Incoming) -> None:
        now = self._clock.now()
        if incoming.read is not None and incoming.phase in (P.READING, P.DRAINING):
            event = READ_EVENTS.get(self._transfer.poll(incoming.read))
            if event is not None:
                self._apply(incoming, event)
        if incoming.phase in (P.WAITING, P.READING, P.RELEASING) and incoming.deadline <= now:
            self._apply(incoming, E.TIMEOUT)
        elif incoming.phase in (P.WAITING, P.READING) and incoming.renew_at <= now:
            incoming.renew_at = now + incoming.handoff.lease_seconds / 3
            self._say(incoming, LeaseCommand.RENEW)

    def _start(self, spare_tokens: int) -> None:
        """Post the reads of waiting handoffs by precedence; the first that does not fit holds up the rest."""
        room = self._config.max_requests - self._pages.queue.holding
        waiting = [incoming for incoming in self._incoming.values() if incoming.phase == P.WAITING]
        for incoming in sorted(waiting, key=lambda i: i.sequence.precedence)[: max(0, room)]:
            if not self._pages.queue.is_next(incoming.sequence.precedence):
                return
            if not self._take_pages(incoming, spare_tokens):
                return
            self._apply(incoming, E.ROOM)

    def _take_pages(self, incoming: Incoming, spare_tokens: int) -> bool:
        """Pages for the handoff's tokens: those that are here already, and room to read the others into."""
        handoff, request = incoming.handoff, incoming.sequence.request
        # pages without a drafter part that is of use here are only shared with others of their kind
        salt = request.cache_salt if incoming.with_drafter else f"{request.cache_salt}\0without drafter"
        tables = self._pages.open(handoff.nonce, salt)
        most = min(handoff.num_tokens + spare_tokens, request.max_total_tokens)
        known = self._pages.match_or_allocate(tables, request.tokens, handoff.num_tokens, most)
        if known is None:
            return False
        incoming.sequence.tables = tables
        self._counters.prompt_tokens += handoff.num_tokens
        self._counters.prefix_hit_tokens += known
        return True

    def _apply(self, incoming: Incoming, event: ReadEvent) -> bool:
        """Move along the table and do what the way asks for."""
        before, moved = incoming.phase, incoming.on(event)
        if not moved:
            return False
        after, now = incoming.phase, self._clock.now()
        if after == P.READING:
            incoming.reads = self._reads(incoming)
            incoming.read_started, incoming.deadline = now, now + self._config.read_seconds
            if not incoming.reads:
                return self._apply(incoming, E.READ_DONE)
            incoming.read = self._transfer.read(incoming.handoff.agents[0], incoming.reads)
            self.reads += 1
        elif after == P.RELEASING:
            self._count(incoming, now)
            incoming.deadline = now + self._config.answer_seconds
            if not self._say(incoming, LeaseCommand.RELEASE):
                return self._apply(incoming, E.TIMEOUT)
        elif after == P.GONE:
            self._pages.release_quarantine(incoming.handoff.nonce)
        elif after != P.ADMITTED:
            self._abandon(incoming, before, event)
        if after in (P.LOST, P.CANCELLED, P.GONE):
            del self._incoming[incoming.handoff.nonce]
        return True

    def _reads(self, incoming: Incoming) -> list[PageRead]:
        """What has to be read: the pages of the handoff that are not here."""
        reads = []
        for name, table in self._tables(incoming).groups.items():
            group, span = self._pages.layout.groups[name], incoming.handoff.spans.get(name)
            num_bytes = group.page_bytes if incoming.with_drafter else group.target_bytes
            if span is None or not num_bytes:
                continue
            pool = self._pages.pools[name]
            pairs = [
                (theirs, ours)
                for page, theirs in enumerate(span.page_ids, start=span.first_page)
                if not pool.is_published(ours := table.page_ids[page - table.first_page])
            ]
            if pairs:
                remote, local = zip(*pairs, strict=True)
                reads.append(PageRead(group=name, remote_pages=remote, local_pages=local, num_bytes=num_bytes))
        return reads

    def _count(self, incoming: Incoming, now: float) -> None:
        incoming.read_ended = now
        self.moved_bytes += incoming.moved_bytes
        self.moved_pages += incoming.moved_pages
        self.transfer_seconds += now - incoming.read_started

    def _abandon(self, incoming: Incoming, before: ReadPhase, event: ReadEvent) -> None:
        """The handoff will not be decoded here: let the lease go, and the pages when no byte can arrive."""
        if before != P.RELEASING and event != E.NOT_HELD:
            self._say(incoming, LeaseCommand.RELEASE)
        if incoming.phase == P.DRAINING:
            self._pages.quarantine(self._tables(incoming))
        elif before != P.WAITING:
            self._pages.clear(self._tables(incoming), published=False)  # what was read may be another's
            self._pages.release(self._tables(incoming))
        if event == E.READ_FAILED:
            self._drop(incoming.peer)
        if event != E.CANCEL:
            self.reads_lost += 1
            reason = f"the pages of {incoming.sequence.id} were lost while {before} ({event})"
            self._ended.append(RequestEnded(request_id=incoming.sequence.id, error=HandoffLost(reason)))

    def _drop(self, peer: str) -> None:
        """A failed read means a dead peer; forget it, unless other reads from it still have to end."""
        if not any(i.peer == peer and i.phase in (P.READING, P.DRAINING) for i in self._incoming.values()):
            self._transfer.drop(peer)

    def _say(self, incoming: Incoming, verb: LeaseCommand) -> bool:
        message = LeaseMessage(command=verb, nonce=incoming.handoff.nonce, metadata=self._transfer.entry.metadata)
        return self._transfer.notify(incoming.peer, message)

    def _tables(self, incoming: Incoming) -> Tables:
        assert incoming.sequence.tables is not None
        return incoming.sequence.tables
