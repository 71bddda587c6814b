"""The line of all requests over the pages of one replica: who gets pages next, and who gives up its own.

Requests stand in the order of precedence. Where two engines share pages, each knows its own requests alone, and neither
can tell who is first or last of all: so they join the line as tenants.
"""

from collections.abc import Iterator
from typing import Protocol

Precedence = tuple[int, float]


class PageUser(Protocol):
    """Requests that hold pages or wait for some, as far as others have to know of them."""

    @property
    def holding(self) -> int:
        """How many have pages."""
        ...

    @property
    def first_waiting(self) -> Precedence | None:
        """The first of those that have none yet."""
        ...

    @property
    def last_holding(self) -> Precedence | None:
        """The last of those that could give up their pages at once."""
        ...

    def evict_last(self) -> None:
        """That one gives up all of its pages."""
        ...


class PageQueue:
    """All tenants of one replica's pages."""

    def __init__(self) -> None:
        self._tenants: list[PageUser] = []

    def join(self, tenant: PageUser) -> None:
        self._tenants.append(tenant)

    @property
    def holding(self) -> int:
        """Requests that have pages."""
        return sum(tenant.holding for tenant in self._tenants)

    def is_next(self, precedence: Precedence) -> bool:
        """Whether nobody who waits for pages stands before one of this precedence."""
        waiting = (tenant.first_waiting for tenant in self._tenants)
        return all(first is None or precedence <= first for first in waiting)

    def last(self) -> PageUser:
        """The tenant whose request has to leave first when pages run out; of equals, that of who joined last.
        Somebody must be holding."""
        return max(self._evictable(), key=lambda pair: pair[0])[1]

    def _evictable(self) -> Iterator[tuple[Precedence, PageUser]]:
        for tenant in reversed(self._tenants):
            last = tenant.last_holding
            if last is not None:
                yield last, tenant
