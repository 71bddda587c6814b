"""Who may still read which pages. A table of states; whoever holds it does the I/O.

A lease is granted when a prompt is done and its pages are offered to a decode replica.

    state      event      next        pages
    held       renew      held        stay, for another term
    held       release    released    go back: they were read while the lease was held
    held       cancel     cancelled   go back: the request is gone
    held       expire     expired     go back: nobody renewed in time
    (none)     any        (none)      an unknown nonce is not held: the answer to the asker is no

The three ends are final and the table forgets them; it only counts them.
"""

import enum
from collections import Counter
from dataclasses import dataclass

from engine.pages import Tables


class LeaseEnd(enum.StrEnum):
    RELEASED = "released"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass
class Lease:
    """Pages of one request, kept for a reader until `deadline` (on the engine's clock)."""

    nonce: str
    request_id: str
    tables: Tables
    deadline: float


class LeaseTable:
    """All leases that are held. `term_seconds` is the length of one term."""

    def __init__(self, term_seconds: float) -> None:
        self.term_seconds = term_seconds
        self.ended: Counter[LeaseEnd] = Counter()
        self._held: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def grant(self, nonce: str, request_id: str, tables: Tables, now: float) -> Lease:
        assert nonce not in self._held, f"nonce {nonce} twice"
        lease = self._held[nonce] = Lease(nonce, request_id, tables, now + self.term_seconds)
        return lease

    def renew(self, nonce: str, now: float) -> bool:
        """Another term. False if the lease is not held (any more)."""
        lease = self._held.get(nonce)
        if lease is None or lease.deadline <= now:
            return False
        lease.deadline = now + self.term_seconds
        return True

    def release(self, nonce: str, now: float) -> Lease | None:
        """End a lease whose pages have been read. None if it was not held to this moment: the read does not count."""
        lease = self._held.get(nonce)
        if lease is None or lease.deadline <= now:
            return None
        return self._end(lease, LeaseEnd.RELEASED)

    def cancel(self, request_id: str) -> Lease | None:
        """End the lease of a request that is gone, if it has one."""
        lease = next((lease for lease in self._held.values() if lease.request_id == request_id), None)
        return lease and self._end(lease, LeaseEnd.CANCELLED)

    def expire(self, now: float) -> list[Lease]:
        """End every lease whose term is over."""
        late = [lease for lease in self._held.values() if lease.deadline <= now]
        return [self._end(lease, LeaseEnd.EXPIRED) for lease in late]

    def _end(self, lease: Lease, end: LeaseEnd) -> Lease:
        self.ended[end] += 1
        return self._held.pop(lease.nonce)
