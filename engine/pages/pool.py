"""The holders of each page. There is no storage, clock or I/O here, so that every order of calls is a unit test.

A page is in exactly one state:
    free         it has no holder, and its content is not kept
    held         it has one or more holders (a request, a lease)
    cached       it has no holder, but is found by its name (prefix.py); the least recently used one is taken first
    quarantined  its holder has ended, but a read into it may still be running; it is freed when the read has ended
Page 0 is the scratch page: padding is written there; it has no holder and no state counts it.

A page that has a name is never written again, so any number of requests may hold it.
"""

import heapq
from collections.abc import Iterable, Sequence

from engine.pages.prefix import PageName
from engine.stats import PageCounts

SCRATCH_PAGE = 0


class PagePool:
    """The page ids 1 .. num_pages of one group. The lowest free ids are taken first: they tend to adjoin."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(1, num_pages + 1))
        self._holders: dict[int, set[str]] = {}
        self._cached: dict[int, None] = {}  # in the order of their last use
        self._quarantined: set[int] = set()
        self._name_of: dict[int, PageName] = {}
        self._page_of: dict[PageName, int] = {}

    @property
    def num_available(self) -> int:
        """The number of pages that can be taken."""
        return len(self._free) + len(self._cached)

    def take(self, count: int, holder: str) -> list[int]:
        """Take `count` pages, which `holder` then holds alone. The caller has checked `num_available`."""
        assert 0 <= count <= self.num_available, f"{count} of {self.num_available} available pages"
        while len(self._free) < count:
            oldest = next(iter(self._cached))
            del self._cached[oldest]
            self._forget(oldest)
            heapq.heappush(self._free, oldest)
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = {holder}
        return pages

    def find(self, name: PageName) -> int | None:
        """Return the held or cached page of that name."""
        return self._page_of.get(name)

    def share(self, pages: Iterable[int], holder: str) -> None:
        """Add a holder to pages that have a name."""
        for page in pages:
            assert page in self._name_of, f"page {page} has no name: its holder may still write it"
            self._cached.pop(page, None)
            holders = self._holders.setdefault(page, set())
            assert holder not in holders, f"{holder} holds page {page} already"
            holders.add(holder)

    def publish(self, page: int, name: PageName) -> None:
        """Give a held page a name by which it is found, unless another page has that name."""
        assert page in self._holders, f"page {page} is not held"
        if name not in self._page_of and page not in self._name_of:
            self._name_of[page] = name
            self._page_of[name] = page

    def is_published(self, page: int) -> bool:
        return page in self._name_of

    def is_shared(self, page: int) -> bool:
        return len(self._holders[page]) > 1

    def withdraw(self, pages: Iterable[int]) -> None:
        """Remove the names of held pages, so that no other request finds them."""
        for page in pages:
            self._forget(page)

    def give_back(self, pages: Iterable[int], holder: str) -> None:
        """Remove a holder. A page without holders becomes cached if it has a name, else free."""
        for page in pages:
            if not self._drop(page, holder):
                continue
            if page in self._name_of:
                self._cached[page] = None
            else:
                heapq.heappush(self._free, page)

    def quarantine(self, pages: Iterable[int], holder: str) -> None:
        """Remove the only holder while bytes may still arrive; `release_quarantine` frees the pages."""
        for page in pages:
            last = self._drop(page, holder)
            assert last, f"page {page} is being read into, yet has other holders: {self._holders.get(page)}"
            self._quarantined.add(page)

    def release_quarantine(self, pages: Sequence[int]) -> None:
        """Free quarantined pages, in which no more bytes can arrive."""
        for page in pages:
            self._quarantined.remove(page)
            heapq.heappush(self._free, page)

    def forget_cached(self) -> None:
        """Free every cached page."""
        for page in self._cached:
            self._forget(page)
            heapq.heappush(self._free, page)
        self._cached.clear()

    def counts(self) -> PageCounts:
        return PageCounts(
            total=self.num_pages,
            free=len(self._free),
            held=len(self._holders),
            cached=len(self._cached),
            quarantined=len(self._quarantined),
        )

    def assert_consistent(self) -> None:
        """Assert that every page is in exactly one state, and that names and pages map one to one."""
        free, held = set(self._free), set(self._holders)
        assert len(free) == len(self._free), "a page is free twice"
        assert all(self._holders.values()), "a held page has no holder"
        states = sorted([*free, *held, *self._cached, *self._quarantined])
        assert states == list(range(1, self.num_pages + 1)), f"{self.counts()} do not make {self.num_pages}"
        assert self._page_of == {name: page for page, name in self._name_of.items()}, "names and pages disagree"
        assert set(self._cached) <= set(self._name_of) <= held | set(self._cached), "a name for a page without content"

    def _drop(self, page: int, holder: str) -> bool:
        holders = self._holders[page]
        holders.remove(holder)
        if not holders:
            del self._holders[page]
        return not holders

    def _forget(self, page: int) -> None:
        name = self._name_of.pop(page, None)
        if name is not None:
            del self._page_of[name]
