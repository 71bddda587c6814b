"""The states of a handoff in a decode replica until its pages are read. This is a table; `Inbox` executes its actions.

    state       event        next        actions
    waiting     room         reading     post_read
    waiting     renew_due    waiting     renew_lease
    waiting     renewed      waiting     extend_deadline
    waiting     not_held     lost        report_lost
    waiting     timeout      lost        release_lease, report_lost
    waiting     cancel       cancelled   release_lease
    reading     renew_due    reading     renew_lease
    reading     read_done    releasing   count_read, release_lease
    reading     read_failed  lost        release_lease, give_back_pages, drop_peer, report_lost
    reading     not_held     draining    quarantine_pages, report_lost
    reading     timeout      draining    release_lease, quarantine_pages, report_lost
    reading     cancel       draining    release_lease, quarantine_pages
    releasing   held         admitted    -
    releasing   not_held     lost        give_back_pages, report_lost
    releasing   timeout      lost        give_back_pages, report_lost
    releasing   cancel       cancelled   give_back_pages
    draining    read_done    gone        release_quarantine
    draining    read_failed  gone        release_quarantine

A handoff that waits has no pages: `room` means that they have been taken. The answer to `release_lease` says whether
the lease was held until the read had ended; if it was not, the pages that were read may hold another request's tokens.
Bytes may still arrive in the pages of a read that was given up, so these pages drain before they are used again. The
owner of a lost request sends it to prefill again.

Answers may come late, time passes in every state, and a request can be cancelled twice: without a row, the events in
IGNORED change nothing. Every other pair without a row is an error in this program.
"""

import enum
from dataclasses import dataclass, field

from decode.sequence import WaitingSequence
from engine.pages import Tables
from engine.transfer import PageRead
from engine.types import Handoff


class ReadPhase(enum.StrEnum):
    WAITING = "waiting"
    READING = "reading"
    RELEASING = "releasing"
    DRAINING = "draining"
    ADMITTED = "admitted"
    LOST = "lost"
    CANCELLED = "cancelled"
    GONE = "gone"


class ReadEvent(enum.StrEnum):
    ROOM = "room"
    RENEW_DUE = "renew_due"
    RENEWED = "renewed"
    READ_DONE = "read_done"
    READ_FAILED = "read_failed"
    HELD = "held"
    NOT_HELD = "not_held"
    TIMEOUT = "timeout"
    CANCEL = "cancel"


class ReadAction(enum.StrEnum):
    POST_READ = "post_read"
    RENEW_LEASE = "renew_lease"
    EXTEND_DEADLINE = "extend_deadline"
    COUNT_READ = "count_read"
    RELEASE_LEASE = "release_lease"
    GIVE_BACK_PAGES = "give_back_pages"
    QUARANTINE_PAGES = "quarantine_pages"
    RELEASE_QUARANTINE = "release_quarantine"
    DROP_PEER = "drop_peer"
    REPORT_LOST = "report_lost"


P, E, A = ReadPhase, ReadEvent, ReadAction
TRANSITIONS: dict[tuple[ReadPhase, ReadEvent], tuple[ReadPhase, tuple[ReadAction, ...]]] = {
    (P.WAITING, E.ROOM): (P.READING, (A.POST_READ,)),
    (P.WAITING, E.RENEW_DUE): (P.WAITING, (A.RENEW_LEASE,)),
    (P.WAITING, E.RENEWED): (P.WAITING, (A.EXTEND_DEADLINE,)),
    (P.WAITING, E.NOT_HELD): (P.LOST, (A.REPORT_LOST,)),
    (P.WAITING, E.TIMEOUT): (P.LOST, (A.RELEASE_LEASE, A.REPORT_LOST)),
    (P.WAITING, E.CANCEL): (P.CANCELLED, (A.RELEASE_LEASE,)),
    (P.READING, E.RENEW_DUE): (P.READING, (A.RENEW_LEASE,)),
    (P.READING, E.READ_DONE): (P.RELEASING, (A.COUNT_READ, A.RELEASE_LEASE)),
    (P.READING, E.READ_FAILED): (P.LOST, (A.RELEASE_LEASE, A.GIVE_BACK_PAGES, A.DROP_PEER, A.REPORT_LOST)),
    (P.READING, E.NOT_HELD): (P.DRAINING, (A.QUARANTINE_PAGES, A.REPORT_LOST)),
    (P.READING, E.TIMEOUT): (P.DRAINING, (A.RELEASE_LEASE, A.QUARANTINE_PAGES, A.REPORT_LOST)),
    (P.READING, E.CANCEL): (P.DRAINING, (A.RELEASE_LEASE, A.QUARANTINE_PAGES)),
    (P.RELEASING, E.HELD): (P.ADMITTED, ()),
    (P.RELEASING, E.NOT_HELD): (P.LOST, (A.GIVE_BACK_PAGES, A.REPORT_LOST)),
    (P.RELEASING, E.TIMEOUT): (P.LOST, (A.GIVE_BACK_PAGES, A.REPORT_LOST)),
    (P.RELEASING, E.CANCEL): (P.CANCELLED, (A.GIVE_BACK_PAGES,)),
    (P.DRAINING, E.READ_DONE): (P.GONE, (A.RELEASE_QUARANTINE,)),
    (P.DRAINING, E.READ_FAILED): (P.GONE, (A.RELEASE_QUARANTINE,)),
}
IGNORED = frozenset({E.RENEW_DUE, E.RENEWED, E.HELD, E.NOT_HELD, E.TIMEOUT, E.CANCEL})
LIVE = frozenset({P.WAITING, P.READING, P.RELEASING, P.DRAINING})


@dataclass
class Incoming:
    """A handoff that is not decoding yet. Times are on the engine's clock.

    `tables` are empty while it waits. `with_drafter`: the drafter's part of its pages is read too.
    """

    handoff: Handoff
    sequence: WaitingSequence
    tables: Tables
    arrived: float
    renew_at: float
    deadline: float
    with_drafter: bool = False
    phase: ReadPhase = ReadPhase.WAITING
    reads: list[PageRead] = field(default_factory=list)
    read: int | None = None
    read_started: float = 0.0
    read_ended: float = 0.0
    cause: str = ""
    """The phase and the event of the last transition."""

    @property
    def nonce(self) -> str:
        return self.handoff.nonce

    @property
    def peer(self) -> str:
        return self.handoff.agents[0].name

    @property
    def moved_bytes(self) -> int:
        return sum(read.total_bytes for read in self.reads)

    @property
    def moved_pages(self) -> int:
        return sum(len(read.remote_pages) for read in self.reads)

    @property
    def reads_pages(self) -> bool:
        """Return whether bytes may still arrive in its pages."""
        return self.phase in (ReadPhase.READING, ReadPhase.DRAINING)

    def on(self, event: ReadEvent) -> tuple[ReadAction, ...]:
        """Move along the table, and return the actions that this asks for."""
        if (self.phase, event) not in TRANSITIONS:
            assert event in IGNORED, f"{event} cannot happen while {self.phase}"
            return ()
        self.cause = f"{self.phase} ({event})"
        self.phase, actions = TRANSITIONS[self.phase, event]
        return actions
