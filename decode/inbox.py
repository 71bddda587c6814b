"""Handoffs whose pages still have to be read: reads are posted and polled, leases renewed and released.

`handoff_reads.py` is the table of what may happen; `Inbox` executes its actions.
"""

from collections.abc import Callable

from decode.handoff_reads import LIVE, Incoming, ReadAction, ReadEvent, ReadPhase
from decode.sequence import WaitingSequence
from engine.clock import Clock
from engine.config import DecodeConfig
from engine.errors import HandoffLost
from engine.pages import Pages, Precedence
from engine.stats import Counters
from engine.transfer import Message, PageRead, ReadState, Transfer, Verb
from engine.types import Ended

P, E, A = ReadPhase, ReadEvent, ReadAction
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
        self._ended: list[Ended] = []
        self.reads = self.reads_lost = 0
        self.moved_bytes = self.moved_pages = 0
        self.transfer_seconds = 0.0
        self._methods: dict[ReadAction, Callable[[Incoming], ReadEvent | None]] = {
            A.POST_READ: self._post_read,
            A.RENEW_LEASE: self._renew_lease,
            A.EXTEND_DEADLINE: self._extend_deadline,
            A.COUNT_READ: self._count_read,
            A.RELEASE_LEASE: self._release_lease,
            A.GIVE_BACK_PAGES: self._give_back_pages,
            A.QUARANTINE_PAGES: lambda incoming: self._pages.quarantine(incoming.tables),
            A.RELEASE_QUARANTINE: lambda incoming: self._pages.release_quarantine(incoming.nonce),
            A.DROP_PEER: self._drop_peer,
            A.REPORT_LOST: self._report_lost,
        }
        pages.queue.join(self)

    def __len__(self) -> int:
        return len(self._incoming)

    @property
    def waiting(self) -> int:
        return sum(incoming.phase == P.WAITING for incoming in self._incoming.values())

    @property
    def with_pages(self) -> list[WaitingSequence]:
        """The requests that have taken pages and do not run yet."""
        phases = (P.READING, P.RELEASING, P.ADMITTED)
        return [incoming.sequence for incoming in self._incoming.values() if incoming.phase in phases]

    @property
    def holding(self) -> int:
        return len(self.with_pages)

    @property
    def first_waiting(self) -> Precedence | None:
        waiting = (i.sequence.precedence for i in self._incoming.values() if i.phase == P.WAITING)
        return min(waiting, default=None)

    @property
    def last_holding(self) -> None:
        """None, always: bytes may still arrive in these pages, so they cannot be given up at once."""
        return None

    def evict_last(self) -> None:
        raise AssertionError("no handoff can give up its pages at once")

    def add(self, incoming: Incoming) -> None:
        self._transfer.connect(incoming.handoff.agents[0])
        self._incoming[incoming.nonce] = incoming

    def decline(self, incoming: Incoming) -> None:
        """Release the lease of a request that has finished with its first token: its pages are not needed."""
        self._transfer.connect(incoming.handoff.agents[0])
        self._notify(incoming, Verb.RELEASE)

    def cancel(self, request_id: str) -> bool:
        """Stop a request in any phase. Return False if it is not here."""
        for incoming in list(self._incoming.values()):
            if incoming.sequence.id == request_id and incoming.phase != P.DRAINING:
                self._apply(incoming, E.CANCEL)
                return True
        return False

    def overdue(self, now: float) -> list[WaitingSequence]:
        """Stop the requests whose deadline has passed, and return them."""
        candidates = [i.sequence for i in self._incoming.values() if i.phase != P.DRAINING]
        late = [sequence for sequence in candidates if sequence.deadline <= now]
        for sequence in late:
            self.cancel(sequence.id)
        return late

    def poll(self, spare_tokens: int) -> tuple[list[Incoming], list[Ended]]:
        """Take messages, poll reads, and start as many reads as pages and `max_requests` allow.

        Returns the handoffs whose pages have been read, and the requests that lost theirs. A read starts if there is
        room for `spare_tokens` more than the handoff has, so that the request is not preempted at once.
        """
        self._take_answers()
        for incoming in list(self._incoming.values()):
            self._watch(incoming)
        self._start(spare_tokens)
        admitted = [incoming for incoming in self._incoming.values() if incoming.phase == P.ADMITTED]
        for incoming in admitted:
            del self._incoming[incoming.nonce]
        ended, self._ended = self._ended, []
        return admitted, ended

    def _take_answers(self) -> None:
        for _peer, message in self._transfer.notifications():
            incoming = self._incoming.get(message.nonce)
            if incoming is None or message.held is None:
                continue  # the request has ended, or the message is a question
            held = E.HELD if message.verb == Verb.RELEASE else E.RENEWED
            self._apply(incoming, held if message.held else E.NOT_HELD)

    def _watch(self, incoming: Incoming) -> None:
        if incoming.read is not None and incoming.reads_pages:
            event = READ_EVENTS.get(self._transfer.poll(incoming.read))
            if event is not None:
                self._apply(incoming, event)
        now = self._clock.now()
        if incoming.deadline <= now:
            self._apply(incoming, E.TIMEOUT)
        elif incoming.renew_at <= now:
            self._apply(incoming, E.RENEW_DUE)

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
        """Take pages for the handoff's tokens: those that are cached here, and new ones to read the others into."""
        num_tokens, request = incoming.handoff.num_tokens, incoming.sequence.request
        max_tokens = min(num_tokens + spare_tokens, request.max_total_tokens)
        known = self._pages.match_or_allocate(incoming.tables, request.tokens, num_tokens, max_tokens)
        if known is None:
            return False
        self._counters.prompt_tokens += num_tokens
        self._counters.prefix_hit_tokens += known
        return True

    def _apply(self, incoming: Incoming, event: ReadEvent | None) -> None:
        """Execute the actions of an event, and those of the event that an action may lead to at once."""
        while event is not None:
            actions, event = incoming.on(event), None
            for action in actions:
                event = self._methods[action](incoming) or event
        if incoming.phase not in LIVE and incoming.phase != P.ADMITTED:
            self._incoming.pop(incoming.nonce, None)

    def _post_read(self, incoming: Incoming) -> ReadEvent | None:
        """Read the pages of the handoff that are not cached here; READ_DONE if there are none."""
        incoming.reads = self._page_reads(incoming)
        incoming.read_started = self._clock.now()
        incoming.deadline = incoming.read_started + self._config.read_timeout_seconds
        if not incoming.reads:
            return E.READ_DONE
        incoming.read = self._transfer.read(incoming.handoff.agents[0], incoming.reads)
        self.reads += 1
        return None

    def _page_reads(self, incoming: Incoming) -> list[PageRead]:
        reads = []
        for name, table in incoming.tables.groups.items():
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

    def _renew_lease(self, incoming: Incoming) -> None:
        incoming.renew_at = self._clock.now() + incoming.handoff.lease_seconds / 3
        self._notify(incoming, Verb.RENEW)

    def _extend_deadline(self, incoming: Incoming) -> None:
        incoming.deadline = self._clock.now() + incoming.handoff.lease_seconds

    def _count_read(self, incoming: Incoming) -> None:
        incoming.read_ended = self._clock.now()
        self.moved_bytes += incoming.moved_bytes
        self.moved_pages += incoming.moved_pages
        self.transfer_seconds += incoming.read_ended - incoming.read_started

    def _release_lease(self, incoming: Incoming) -> ReadEvent | None:
        """Release the lease and await the answer; TIMEOUT if the peer cannot be reached."""
        incoming.deadline = self._clock.now() + self._config.release_timeout_seconds
        return None if self._notify(incoming, Verb.RELEASE) else E.TIMEOUT

    def _give_back_pages(self, incoming: Incoming) -> None:
        self._pages.clear(incoming.tables, published=False)  # what was read may be another request's
        self._pages.release(incoming.tables)

    def _drop_peer(self, incoming: Incoming) -> None:
        """Drop a peer after a failed read, unless other reads from it still have to end."""
        if not any(other.peer == incoming.peer and other.reads_pages for other in self._incoming.values()):
            self._transfer.drop(incoming.peer)

    def _report_lost(self, incoming: Incoming) -> None:
        self.reads_lost += 1
        reason = f"the pages of {incoming.sequence.id} were lost while {incoming.cause}"
        self._ended.append(Ended(request_id=incoming.sequence.id, error=HandoffLost(reason)))

    def _notify(self, incoming: Incoming, verb: Verb) -> bool:
        message = Message(verb=verb, nonce=incoming.nonce, metadata=self._transfer.entry.metadata)
        return self._transfer.notify(incoming.peer, message)
