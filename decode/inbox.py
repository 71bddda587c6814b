"""Handoffs on their way in: pages read over the transfer, leases renewed and released.

`reads.py` says what may happen; this does it. A handoff leaves as an admitted `Incoming`, or as `Ended`.
"""

from decode.reads import Incoming, ReadEvent, ReadPhase
from engine.clock import Clock
from engine.config import DecodeConfig
from engine.errors import HandoffLost
from engine.pages import Pages, Tables
from engine.transfer import Message, PageRead, ReadState, Transfer, Verb
from engine.types import Ended

P, E = ReadPhase, ReadEvent
READ_EVENTS = {ReadState.DONE: E.READ_DONE, ReadState.FAILED: E.READ_FAILED}


class Inbox:
    """All handoffs that are not decoding yet, oldest first."""

    def __init__(
        self, *, pages: Pages, transfer: Transfer, clock: Clock, config: DecodeConfig, step_tokens: int
    ) -> None:
        self._pages = pages
        self._transfer = transfer
        self._clock = clock
        self._config = config
        self._step_tokens = step_tokens
        self._incoming: dict[str, Incoming] = {}
        self._ended: list[Ended] = []
        self.reads = self.reads_lost = 0
        self.moved_bytes = self.moved_pages = 0
        self.transfer_seconds = 0.0

    def __len__(self) -> int:
        return len(self._incoming)

    @property
    def waiting(self) -> int:
        return sum(incoming.phase == P.WAITING for incoming in self._incoming.values())

    def demand(self, num_tokens: int) -> dict[str, int]:
        """Pages a request of at most `num_tokens` takes here."""
        return self._pages.demand(num_tokens, self._step_tokens)

    def add(self, incoming: Incoming) -> None:
        self._transfer.connect(incoming.handoff.agents[0])
        self._incoming[incoming.handoff.nonce] = incoming

    def decline(self, incoming: Incoming) -> None:
        """Release a handoff whose pages nobody wants: the request has ended with its first token."""
        self._transfer.connect(incoming.handoff.agents[0])
        self._say(incoming, Verb.RELEASE)

    def cancel(self, request_id: str) -> bool:
        """Stop a request in whatever phase it is. False if it is not here."""
        for incoming in list(self._incoming.values()):
            if incoming.sequence.id == request_id:
                return self._apply(incoming, E.CANCEL)
        return False

    def poll(self, room: int) -> tuple[list[Incoming], list[Ended]]:
        """Take messages, look at reads and start up to `room` more, less those already on their way.

        Returns the handoffs whose pages are ours now, and the requests that lost theirs.
        """
        self._take_answers()
        for incoming in list(self._incoming.values()):
            self._watch(incoming)
        self._start(room)
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
            elif message.verb == Verb.RELEASE:
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
            self._say(incoming, Verb.RENEW)

    def _start(self, room: int) -> None:
        """Post the reads of the oldest waiting handoffs; the first that does not fit holds up the rest."""
        on_their_way = (P.READING, P.RELEASING, P.ADMITTED)
        room -= sum(incoming.phase in on_their_way for incoming in self._incoming.values())
        for incoming in list(self._incoming.values()):
            if incoming.phase != P.WAITING:
                continue
            if room <= 0:
                return
            sequence, handoff = incoming.sequence, incoming.handoff
            tables = self._pages.reserve(handoff.nonce, self.demand(sequence.request.max_total_tokens))
            if tables is None:
                return
            tables.adopt(handoff.spans, handoff.num_tokens)
            sequence.tables = tables
            self._apply(incoming, E.ROOM)
            room -= 1

    def _apply(self, incoming: Incoming, event: ReadEvent) -> bool:
        """Move along the table and do what the way asks for."""
        before, moved = incoming.phase, incoming.on(event)
        if not moved:
            return False
        after, now = incoming.phase, self._clock.now()
        if after == P.READING:
            self._post(incoming, now)
        elif after == P.RELEASING:
            self._count(incoming, now)
            incoming.deadline = now + self._config.answer_seconds
            if not self._say(incoming, Verb.RELEASE):
                return self._apply(incoming, E.TIMEOUT)
        elif after == P.GONE:
            self._pages.settle(incoming.handoff.nonce)
        elif after != P.ADMITTED:
            self._abandon(incoming, before, event)
        if after in (P.LOST, P.CANCELLED, P.GONE):
            del self._incoming[incoming.handoff.nonce]
        return True

    def _post(self, incoming: Incoming, now: float) -> None:
        handoff, tables = incoming.handoff, self._tables(incoming)
        reads = [
            PageRead(
                group=name,
                remote_pages=span.page_ids,
                local_pages=tuple(tables.groups[name].page_ids),
                num_bytes=self._pages.layout.groups[name].target_bytes,
            )
            for name, span in handoff.spans.items()
        ]
        incoming.moved_bytes = sum(read.total_bytes for read in reads)
        incoming.read_started, incoming.deadline = now, now + self._config.read_seconds
        incoming.read = self._transfer.read(handoff.agents[0], reads)
        self.reads += 1

    def _count(self, incoming: Incoming, now: float) -> None:
        incoming.read_ended = now
        self.moved_bytes += incoming.moved_bytes
        self.moved_pages += incoming.handoff.num_pages
        self.transfer_seconds += now - incoming.read_started

    def _abandon(self, incoming: Incoming, before: ReadPhase, event: ReadEvent) -> None:
        """The handoff will not be decoded here: let the lease go, and the pages when no byte can arrive."""
        if before != P.RELEASING and event != E.NOT_HELD:
            self._say(incoming, Verb.RELEASE)
        if incoming.phase == P.DRAINING:
            self._pages.quarantine(self._tables(incoming))
        elif before != P.WAITING:
            self._pages.release(self._tables(incoming))
        if event == E.READ_FAILED:
            self._drop(incoming.peer)
        if event != E.CANCEL:
            self.reads_lost += 1
            reason = f"the pages of {incoming.sequence.id} were lost while {before} ({event})"
            self._ended.append(Ended(request_id=incoming.sequence.id, error=HandoffLost(reason)))

    def _drop(self, peer: str) -> None:
        """A failed read means a dead peer; forget it, unless other reads from it still have to end."""
        if not any(i.peer == peer and i.phase in (P.READING, P.DRAINING) for i in self._incoming.values()):
            self._transfer.drop(peer)

    def _say(self, incoming: Incoming, verb: Verb) -> bool:
        message = Message(verb=verb, nonce=incoming.handoff.nonce, metadata=self._transfer.entry.metadata)
        return self._transfer.notify(incoming.peer, message)

    def _tables(self, incoming: Incoming) -> Tables:
        assert incoming.sequence.tables is not None
        return incoming.sequence.tables
