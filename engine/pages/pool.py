"""Who holds which page. No storage, no clock, no I/O: every order of calls is a unit test.

A page is in exactly one state:
    free         nobody's, and nothing in it is worth keeping
    held         by one or more holders (a request, a lease)
    cached       nobody's, but it can be found by its name (prefix.py); the one unused for longest is taken first
    quarantined  its holder is gone, but a read into it may still be running; freed when that settles
Page 0 is the scratch page: padding is written there, nobody holds it and no state counts it.

A page that has a name is never written again, so any number of requests may hold it.
"""

import heapq
from collections.abc import Iterable, Sequence

from engine.pages.prefix import PageName
from engine.stats import PageCounts

SCRATCH_PAGE = 0


class PagePool:
    """Ids 1 .. num_pages of one page group. The lowest free ids go out first, so that they tend to adjoin."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(1, num_pages + 1))
        self._holders: dict[int, set[str]] = {}
        self._cached: dict[int, None] = {}  # in the order in which they were last used
        self._quarantined: set[int] = set()
        self._name_of: dict[int, PageName] = {}
        self._page_of: dict[PageName, int] = {}

    @property
    def num_available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._cached)

    def take(self, count: int, holder: str) -> list[int]:
        """`count` pages, now held by `holder` alone. The caller has looked at `num_available`."""
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
        """The page of that name, held or cached."""
        return self._page_of.get(name)

    def share(self, pages: Iterable[int], holder: str) -> None:
        """Make `holder` one more holder of pages that have a name."""
        for page in pages:
            assert page in self._name_of, f"page {page} has no name: its holder may still write it"
            self._cached.pop(page, None)
            holders = self._holders.setdefault(page, set())
            assert holder not in holders, f"{holder} holds page {page} already"
            holders.add(holder)

    def publish(self, page: int, name: PageName) -> None:
        """From now on a held page is found by `name`, unless another page is already."""
        assert page in self._holders, f"page {page} is not held"
        if name not in self._page_of and page not in self._name_of:
            self._name_of[page] = name
            self._page_of[name] = page

    def is_published(self, page: int) -> bool:
        return page in self._name_of

    def is_shared(self, page: int) -> bool:
        return len(self._holders[page]) > 1

    def withdraw(self, pages: Iterable[int]) -> None:
        """Held pages lose their names: nobody new finds them."""
        for page in pages:
            self._forget(page)

    def give_back(self, pages: Iterable[int], holder: str) -> None:
        """`holder` lets go. What nobody else holds becomes cached if it has a name, else free."""
        for page in pages:
            if not self._drop(page, holder):
                continue
            if page in self._name_of:
                self._cached[page] = None
            else:
                heapq.heappush(self._free, page)

    def quarantine(self, pages: Iterable[int], holder: str) -> None:
        """`holder` lets go while bytes may still arrive; `release_quarantine` frees the pages."""
        for page in pages:
            last = self._drop(page, holder)
            assert last, f"page {page} is being read into, yet has other holders: {self._holders.get(page)}"
            self._quarantined.add(page)

    def release_quarantine(self, pages: Sequence[int]) -> None:
        """No more bytes can arrive in these quarantined pages."""
        for page in pages:
            self._quarantined.remove(page)
            heapq.heappush(self._free, page)

    def forget_cached(self) -> None:
        """Every cached page becomes free."""
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
        """Every page is in exactly one state, and names and pages go together one to one."""
        free, held = set(self._free), set(self._holders)
        assert len(free) == len(self._free), "a page is free twice"
        assert all(self._holders.values()), "a page is held by nobody"
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
