"""Who holds which page. No storage, no clock, no I/O: every order of calls is a unit test.

A page is in exactly one state:
    free         nobody's
    held         by one or more holders (a request, a lease); freed when the last one gives it back
    quarantined  its holder is gone, but a read into it may still be running; freed when that settles
Page 0 is the scratch page: padding is written there, nobody holds it and no state counts it.
"""

import heapq
from collections.abc import Iterable, Sequence

from engine.facts import PageCounts

SCRATCH_PAGE = 0


class PagePool:
    """Ids 1 .. num_pages of one page group. The lowest free ids go out first, so that they tend to adjoin."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(1, num_pages + 1))
        self._holders: dict[int, set[str]] = {}
        self._quarantined: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int, holder: str) -> list[int]:
        """`count` free pages, now held by `holder`. The caller has looked at `num_free`."""
        assert 0 <= count <= len(self._free), f"{count} of {len(self._free)} free pages"
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = {holder}
        return pages

    def share(self, pages: Iterable[int], holder: str) -> None:
        """Make `holder` one more holder of pages that are held already."""
        for page in pages:
            holders = self._holders[page]
            assert holder not in holders, f"{holder} holds page {page} already"
            holders.add(holder)

    def give_back(self, pages: Iterable[int], holder: str) -> None:
        """`holder` lets go; pages that nobody else holds become free."""
        for page in pages:
            if self._drop(page, holder):
                heapq.heappush(self._free, page)

    def quarantine(self, pages: Iterable[int], holder: str) -> None:
        """`holder` lets go while bytes may still arrive; `settle` frees the pages."""
        for page in pages:
            last = self._drop(page, holder)
            assert last, f"page {page} is being read into, yet has other holders: {self._holders.get(page)}"
            self._quarantined.add(page)

    def settle(self, pages: Sequence[int]) -> None:
        """No more bytes can arrive in these quarantined pages."""
        for page in pages:
            self._quarantined.remove(page)
            heapq.heappush(self._free, page)

    def counts(self) -> PageCounts:
        return PageCounts(
            total=self.num_pages,
            free=len(self._free),
            held=len(self._holders),
            quarantined=len(self._quarantined),
        )

    def assert_consistent(self) -> None:
        """Every page is in exactly one state."""
        free, held = set(self._free), set(self._holders)
        assert len(free) == len(self._free), "a page is free twice"
        assert all(self._holders.values()), "a page is held by nobody"
        states = sorted([*free, *held, *self._quarantined])
        assert states == list(range(1, self.num_pages + 1)), f"{self.counts()} do not make {self.num_pages}"

    def _drop(self, page: int, holder: str) -> bool:
        holders = self._holders[page]
        holders.remove(holder)
        if not holders:
            del self._holders[page]
        return not holders
