"""The queue of requests for the pages of one replica: which one gets pages next, and which one gives them up first.

Requests are ordered by precedence. Two engines that share pages each know only their own requests; the queue compares
the first and the last of both.
"""

from collections.abc import Iterator
from typing import Protocol

Precedence = tuple[int, float]


class PageUser(Protocol):
    """An engine whose requests hold pages or wait for them."""

    @property
    def holding(self) -> int:
        """The number of requests that hold pages."""
        ...

    @property
    def first_waiting(self) -> Precedence | None:
        """The first precedence of the requests that wait for pages."""
        ...

    @property
    def last_holding(self) -> Precedence | None:
        """The last precedence of the requests that could give up their pages at once."""
        ...

    def evict_last(self) -> None:
        """Take all pages from the request of `last_holding`."""
        ...


class PageQueue:
    """The users of one replica's pages."""

    def __init__(self) -> None:
        self._users: list[PageUser] = []

    def join(self, user: PageUser) -> None:
        self._users.append(user)

    @property
    def holding(self) -> int:
        """The number of requests that hold pages."""
        return sum(user.holding for user in self._users)

    def is_next(self, precedence: Precedence) -> bool:
        """Return whether no request that waits for pages comes before this precedence."""
        waiting = (user.first_waiting for user in self._users)
        return all(first is None or precedence <= first for first in waiting)

    def last(self) -> PageUser:
        """Return the user whose request gives up its pages first; of equals, the user that joined last.

        At least one request must be able to give up its pages.
        """
        return max(self._evictable(), key=lambda pair: pair[0])[1]

    def _evictable(self) -> Iterator[tuple[Precedence, PageUser]]:
        for user in reversed(self._users):
            last = user.last_holding
            if last is not None:
                yield last, user
