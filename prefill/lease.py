"""Leases on the pages of finished prompts: a table of states, and `LeaseTable`, which executes its actions.

A lease is granted when a prompt is finished and its pages are offered to a decode replica.

    state   event       next        actions
    held    renew       held        extend_term
    held    release     released    give_back_pages, report_read
    held    hand_over   released    -
    held    cancel      cancelled   give_back_pages
    held    expire      expired     give_back_pages, report_expired

After `release` the pages have been read while the lease was held; after `hand_over` they belong to an engine over the
same pages. A lease that was never granted or has ended is not held: its reader gets that answer.
"""

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import HandoffLost
from engine.pages import Pages, Tables
from engine.types import RequestEnded


class LeaseState(enum.StrEnum):
    HELD = "held"
    RELEASED = "released"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class LeaseEvent(enum.StrEnum):
    RENEW = "renew"
    RELEASE = "release"
    HAND_OVER = "hand_over"
    CANCEL = "cancel"
    EXPIRE = "expire"


class LeaseAction(enum.StrEnum):
    EXTEND_TERM = "extend_term"
    GIVE_BACK_PAGES = "give_back_pages"
    REPORT_READ = "report_read"
    REPORT_EXPIRED = "report_expired"


S, E, A = LeaseState, LeaseEvent, LeaseAction
TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], tuple[LeaseState, tuple[LeaseAction, ...]]] = {
    (S.HELD, E.RENEW): (S.HELD, (A.EXTEND_TERM,)),
    (S.HELD, E.RELEASE): (S.RELEASED, (A.GIVE_BACK_PAGES, A.REPORT_READ)),
    (S.HELD, E.HAND_OVER): (S.RELEASED, ()),
    (S.HELD, E.CANCEL): (S.CANCELLED, (A.GIVE_BACK_PAGES,)),
    (S.HELD, E.EXPIRE): (S.EXPIRED, (A.GIVE_BACK_PAGES, A.REPORT_EXPIRED)),
}


@dataclass
class Lease:
    """The pages of one request, kept for a reader until `deadline` on the engine's clock."""

    nonce: str
    request_id: str
    tables: Tables
    deadline: float
    state: LeaseState = LeaseState.HELD


class LeaseTable:
    """All leases that are held. One term of a lease lasts `term_seconds`."""

    def __init__(self, pages: Pages, term_seconds: float) -> None:
        self.term_seconds = term_seconds
        self.ended: Counter[LeaseState] = Counter()
        self._pages = pages
        self._held: dict[str, Lease] = {}
        self._events: list[RequestEnded] = []
        self._methods: dict[LeaseAction, Callable[[Lease, float], None]] = {
            A.EXTEND_TERM: self._extend_term,
            A.GIVE_BACK_PAGES: lambda lease, now: self._pages.release(lease.tables),
            A.REPORT_READ: lambda lease, now: self._events.append(RequestEnded(request_id=lease.request_id)),
            A.REPORT_EXPIRED: self._report_expired,
        }

    def __len__(self) -> int:
        return len(self._held)

    def grant(self, nonce: str, request_id: str, tables: Tables, now: float) -> Lease:
        assert nonce not in self._held, f"nonce {nonce} twice"
        lease = self._held[nonce] = Lease(nonce, request_id, tables, now + self.term_seconds)
        return lease

    def renew(self, nonce: str, now: float) -> bool:
        """Extend a lease by another term. Return False if it is not held (any more)."""
        return self._apply_if_held(nonce, E.RENEW, now)

    def release(self, nonce: str, now: float) -> bool:
        """End a lease whose pages have been read. Return False if it was not held until now: then the read does not
        count."""
        return self._apply_if_held(nonce, E.RELEASE, now)

    def hand_over(self, nonce: str, now: float) -> Tables:
        """End a lease that is held, and return its pages to an engine that shares them."""
        lease = self._held[nonce]
        held = self._apply_if_held(nonce, E.HAND_OVER, now)
        assert held, f"lease {nonce} has expired"
        return lease.tables

    def cancel(self, request_id: str, now: float) -> bool:
        """End the lease of a request. Return False if it has none."""
        lease = next((lease for lease in self._held.values() if lease.request_id == request_id), None)
        if lease is not None:
            self._apply(lease, E.CANCEL, now)
        return lease is not None

    def expire(self, now: float) -> int:
        """End every lease whose term is over, and return how many there were."""
        late = [lease for lease in self._held.values() if lease.deadline <= now]
        for lease in late:
            self._apply(lease, E.EXPIRE, now)
        return len(late)

    def pending_events(self) -> list[RequestEnded]:
        """Return the requests whose lease was released or has expired since the last call."""
        events, self._events = self._events, []
        return events

    def _apply_if_held(self, nonce: str, event: LeaseEvent, now: float) -> bool:
        lease = self._held.get(nonce)
        if lease is None or lease.deadline <= now:
            return False
        self._apply(lease, event, now)
        return True

    def _apply(self, lease: Lease, event: LeaseEvent, now: float) -> None:
        lease.state, actions = TRANSITIONS[lease.state, event]
        for action in actions:
            self._methods[action](lease, now)
        if lease.state != S.HELD:
            del self._held[lease.nonce]
            self.ended[lease.state] += 1

    def _extend_term(self, lease: Lease, now: float) -> None:
        lease.deadline = now + self.term_seconds

    def _report_expired(self, lease: Lease, now: float) -> None:
        reason = f"no decode replica read the pages of {lease.request_id} within {self.term_seconds} s"
        self._events.append(RequestEnded(request_id=lease.request_id, error=HandoffLost(reason)))
