"""The life of a handoff in a decode replica, until its pages are ours. A table; the `Decoder` does the I/O.

    state       event        next        what the decoder does on the way
    waiting     room         reading     take pages, post one READ for those that are not here already
    waiting     not_held     lost        -
    waiting     timeout      lost        release
    waiting     cancel       cancelled   release
    reading     read_done    releasing   release, and ask whether it was held to the end
    reading     read_failed  lost        release, give pages back
    reading     not_held     draining    quarantine pages: bytes may still arrive
    reading     timeout      draining    release, quarantine pages
    reading     cancel       draining    release, quarantine pages
    releasing   held         admitted    decode
    releasing   not_held     lost        give pages back: what was read may be another's
    releasing   timeout      lost        give pages back
    releasing   cancel       cancelled   give pages back
    draining    read_done    gone        release_quarantine pages
    draining    read_failed  gone        release_quarantine pages

`lost` is prefilled again by whoever owns the request. Every other event leaves a state as it is: an answer to a
renewal may come late, and a request can be cancelled twice.
"""

import enum
from dataclasses import dataclass, field

from decode.sequence import Sequence
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
    READ_DONE = "read_done"
    READ_FAILED = "read_failed"
    HELD = "held"
    NOT_HELD = "not_held"
    TIMEOUT = "timeout"
    CANCEL = "cancel"


P, E = ReadPhase, ReadEvent
TRANSITIONS: dict[tuple[ReadPhase, ReadEvent], ReadPhase] = {
    (P.WAITING, E.ROOM): P.READING,
    (P.WAITING, E.NOT_HELD): P.LOST,
    (P.WAITING, E.TIMEOUT): P.LOST,
    (P.WAITING, E.CANCEL): P.CANCELLED,
    (P.READING, E.READ_DONE): P.RELEASING,
    (P.READING, E.READ_FAILED): P.LOST,
    (P.READING, E.NOT_HELD): P.DRAINING,
    (P.READING, E.TIMEOUT): P.DRAINING,
    (P.READING, E.CANCEL): P.DRAINING,
    (P.RELEASING, E.HELD): P.ADMITTED,
    (P.RELEASING, E.NOT_HELD): P.LOST,
    (P.RELEASING, E.TIMEOUT): P.LOST,
    (P.RELEASING, E.CANCEL): P.CANCELLED,
    (P.DRAINING, E.READ_DONE): P.GONE,
    (P.DRAINING, E.READ_FAILED): P.GONE,
}
LIVE = frozenset({P.WAITING, P.READING, P.RELEASING, P.DRAINING})


@dataclass
class Incoming:
    """A handoff that is not decoding yet. Times are on the engine's clock. `with_drafter`: the drafter's part of its
    pages is read too."""

    handoff: Handoff
    sequence: Sequence
    arrived: float
    renew_at: float
    deadline: float
    with_drafter: bool = False
    phase: ReadPhase = ReadPhase.WAITING
    reads: list[PageRead] = field(default_factory=list)
    read: int | None = None
    read_started: float = 0.0
    read_ended: float = 0.0

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
    def live(self) -> bool:
        return self.phase in LIVE

    @property
    def renews(self) -> bool:
        return self.phase in (ReadPhase.WAITING, ReadPhase.READING)

    def on(self, event: ReadEvent) -> bool:
        """Move along the table; False if `event` means nothing in this phase."""
        after = TRANSITIONS.get((self.phase, event))
        if after is None:
            return False
        self.phase = after
        return True
