"""One request's pages, and `Pages`, which joins layout, store and pools of one replica.

A request's pages in one group:

    logical pages:   0 .. first_page-1 | first_page .. first_page+len(page_ids)-1
                     passed (window)   | page_ids

Pages are taken as tokens are added (`extend`). If they run out, another request has to give some back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.pages.layout import CacheLayout, PageGroup
from engine.pages.page_queue import PageQueue
from engine.pages.pool import PagePool
from engine.pages.prefix import PageName, PrefixNames
from engine.pages.store import PageStore
from engine.stats import PageCounts
from engine.types import PageSpan


@dataclass
class PageTable:
    """One request's pages in one group."""

    group: PageGroup
    first_page: int
    page_ids: list[int]

    @property
    def end_page(self) -> int:
        """The first logical page that has not been taken."""
        return self.first_page + len(self.page_ids)

    @property
    def num_slots(self) -> int:
        """The number of positions that have a page (or had one, before the window passed)."""
        return self.end_page * self.group.page_tokens

    @property
    def span(self) -> PageSpan:
        return PageSpan(first_page=self.first_page, page_ids=tuple(self.page_ids))

    def missing(self, num_tokens: int) -> int:
        """Return how many pages are missing until every position below `num_tokens` has one."""
        return max(0, self.group.num_pages(num_tokens) - self.end_page)

    def pass_window(self, committed: int) -> list[int]:
        """Drop the pages that no token at or after `committed` can see, and return them."""
        first = max(self.first_page, self.group.first_live_page(committed))
        passed = self.page_ids[: first - self.first_page]
        del self.page_ids[: len(passed)]
        self.first_page = first
        return passed


@dataclass
class Tables:
    """One request's page tables, one for each group, with one holder name."""

    holder: str
    groups: dict[str, PageTable]
    names: PrefixNames
    num_published: int = 0

    @property
    def spans(self) -> dict[str, PageSpan]:
        return {name: table.span for name, table in self.groups.items()}


class Pages:
    """The pages of one replica, and the `queue` of requests for them. With `sharing`, requests share the pages of a
    common prefix."""

    def __init__(self, layout: CacheLayout, store: PageStore, sharing: bool = True) -> None:
        self.layout = layout
        self.store = store
        self.pools = {name: PagePool(store.num_pages[name]) for name in layout.groups}
        self.queue = PageQueue()
        self._sharing = sharing
        self._quarantine: dict[str, dict[str, list[int]]] = {}
        self._flush: Callable[[], None] | None = None

    def defer_writes(self, flush: Callable[[], None]) -> None:
        """Register `flush`, which writes entries that a caller has deferred. It is called once, before any page goes
        to another holder or is cleared."""
        self._flush = flush

    def _flush_writes(self) -> None:
        if self._flush is not None:
            flush, self._flush = self._flush, None
            flush()

    def peak_pages(self, num_tokens: int, step_tokens: int) -> dict[str, int]:
        """Return the most pages of each group that a request of `num_tokens` holds at once, in steps of
        `step_tokens`."""
        return {n: g.peak_pages(num_tokens, step_tokens) for n, g in self.layout.groups.items()}

    def shortfall(self, needed: dict[str, int]) -> str | None:
        """Return why even empty pools would not have the pages `needed`; None if they would."""
        for name, pages in needed.items():
            total = self.pools[name].num_pages
            if pages > total:
                return f"needs {pages} pages of group {name}; this replica has {total} in all"
        return None

    def open(self, holder: str, salt: str = "") -> Tables:
        """Return tables without pages."""
        groups = {name: PageTable(group, 0, []) for name, group in self.layout.groups.items()}
        return Tables(holder, groups, PrefixNames(self.layout.page_tokens, salt))

    def reuse(self, tables: Tables, tokens: Sequence[int]) -> int:
        """Let empty tables begin with cached pages, and return how many of `tokens` these hold.

        This is the longest prefix of which every group has all pages, or all that a window at its end still sees.
        """
        names = tables.names.of(tokens, len(tokens)) if self._sharing else []
        count = self._num_known(names)
        for name, table in tables.groups.items():
            table.first_page = table.group.first_live_page(count * self.layout.page_tokens)
            found = [self.pools[name].find(n) for n in names[table.first_page : count]]
            table.page_ids = [page for page in found if page is not None]
            assert table.end_page == count
            self.pools[name].share(table.page_ids, tables.holder)
        tables.num_published = count
        return count * self.layout.page_tokens

    def match_or_allocate(self, tables: Tables, tokens: Sequence[int], num_tokens: int, max_tokens: int) -> int | None:
        """Fill empty tables with the logical pages that a peer has for `num_tokens` of `tokens`: cached pages where
        there are any, else new ones for the peer's to be read into.

        Returns how many tokens are cached, or None, with nothing changed, if there is no room for `max_tokens`.
        """
        names = tables.names.of(tokens, num_tokens) if self._sharing else []
        found: dict[str, list[int | None]] = {}
        for name, table in tables.groups.items():
            table.first_page = table.group.first_live_page(num_tokens)
            found[name] = [self.pools[name].find(n) for n in names[table.first_page :]]
            table.page_ids = [page for page in found[name] if page is not None]
            self.pools[name].share(table.page_ids, tables.holder)
        if not self.has_room(self.missing(tables, max_tokens)):
            self.release(tables)
            for table in tables.groups.values():
                table.first_page, table.page_ids = 0, []
            return None
        self._flush_writes()
        for name, table in tables.groups.items():
            found[name] += [None] * (table.group.num_pages(num_tokens) - table.first_page - len(found[name]))
            new = iter(self.pools[name].take(found[name].count(None), tables.holder))
            table.page_ids = [next(new) if page is None else page for page in found[name]]
        return max(len(pages) - pages.count(None) for pages in found.values()) * self.layout.page_tokens

    def own_last_page(self, tables: Tables) -> bool:
        """Replace the last page, which others may read, by a copy to write to. Return False if there is no room."""
        if any(pool.num_available < 1 for pool in self.pools.values()):
            return False
        self._flush_writes()
        for name, table in tables.groups.items():
            shared, (own,) = table.page_ids[-1], self.pools[name].take(1, tables.holder)
            self.store.records[name][own] = self.store.records[name][shared]
            self.pools[name].give_back([shared], tables.holder)
            table.page_ids[-1] = own
        tables.num_published -= 1
        return True

    def has_room(self, needed: dict[str, int]) -> bool:
        """Return whether the pages `needed` of each group could be taken now."""
        return all(self.pools[name].num_available >= count for name, count in needed.items())

    def missing(self, tables: Tables, num_tokens: int) -> dict[str, int]:
        """Return the pages of each group that `extend` would take."""
        return {name: table.missing(num_tokens) for name, table in tables.groups.items()}

    def extend(self, tables: Tables, num_tokens: int) -> bool:
        """Take pages for all positions below `num_tokens`. Return False, with nothing changed, if there are too few."""
        missing = self.missing(tables, num_tokens)
        if not self.has_room(missing):
            return False
        if any(missing.values()):
            self._flush_writes()
        for name, count in missing.items():
            tables.groups[name].page_ids += self.pools[name].take(count, tables.holder)
        return True

    def trim(self, tables: Tables, committed: int) -> None:
        """Give back the pages that no token at or after `committed` can see."""
        for name, table in tables.groups.items():
            self.pools[name].give_back(reversed(table.pass_window(committed)), tables.holder)

    def publish(self, tables: Tables, tokens: Sequence[int], num_tokens: int) -> None:
        """Let others find the pages that the first `num_tokens` of `tokens` fill. They are not written any more."""
        if not self._sharing:
            return
        names: list[PageName] = tables.names.of(tokens, num_tokens)
        for page in range(tables.num_published, len(names)):
            for name, table in tables.groups.items():
                if page >= table.first_page:
                    self.pools[name].publish(table.page_ids[page - table.first_page], names[page])
        tables.num_published = max(tables.num_published, len(names))

    def release(self, tables: Tables) -> None:
        """Give back all pages of a request, last page first, so that a prefix is evicted from its end."""
        for name, table in tables.groups.items():
            self.pools[name].give_back(reversed(table.page_ids), tables.holder)

    def clear(self, tables: Tables, published: bool) -> None:
        """Zero the pages that the request alone holds, and unpublish them; without `published`, leave published pages.

        Values that may not be finite must not stay for the next holder, where 0 * NaN is NaN.
        """
        self._flush_writes()
        for name, table in tables.groups.items():
            pool = self.pools[name]
            own = [p for p in table.page_ids if not pool.is_shared(p) and (published or not pool.is_published(p))]
            pool.withdraw(own)
            self.store.records[name][own] = 0

    def quarantine(self, tables: Tables) -> None:
        """Give back all pages of a request, but keep its own out of use until `release_quarantine(holder)` clears
        them, as bytes may still arrive in them."""
        own: dict[str, list[int]] = {}
        for name, table in tables.groups.items():
            pool = self.pools[name]
            own[name] = [page for page in table.page_ids if not pool.is_published(page)]
            pool.give_back([page for page in table.page_ids if pool.is_published(page)], tables.holder)
            pool.quarantine(own[name], tables.holder)
        self._quarantine[tables.holder] = own

    def release_quarantine(self, holder: str) -> None:
        for name, page_ids in self._quarantine.pop(holder).items():
            self.store.records[name][page_ids] = 0
            self.pools[name].release_quarantine(page_ids)

    def forget_cached(self) -> None:
        """Free every cached page. Pages that a request holds are still found by their prefix."""
        for pool in self.pools.values():
            pool.forget_cached()

    def counts(self) -> dict[str, PageCounts]:
        return {name: pool.counts() for name, pool in self.pools.items()}

    def assert_consistent(self) -> None:
        for pool in self.pools.values():
            pool.assert_consistent()

    def assert_idle(self) -> None:
        """Assert that the pages are consistent and have no holder: nothing was leaked."""
        self.assert_consistent()
        for name, pool in self.pools.items():
            assert pool.num_available == pool.num_pages, f"group {name} leaks pages: {pool.counts()}"

    def _num_known(self, names: list[PageName]) -> int:
        """Return how many of the pages `names` a request could begin with."""

        def lacks(group: str, page: int) -> bool:
            return self.pools[group].find(names[page]) is None

        full = [name for name, group in self.layout.groups.items() if group.window is None]
        windows = [(name, group) for name, group in self.layout.groups.items() if group.window is not None]
        count = next((page for page in range(len(names)) if any(lacks(name, page) for name in full)), len(names))
        while count:  # every prefix that ends after a page that a window lacks needs this page
            end = count * self.layout.page_tokens
            seen = ((name, page) for name, group in windows for page in range(group.first_live_page(end), count))
            missing = next((page for name, page in seen if lacks(name, page)), None)
            if missing is None:
                break
            count = missing
        return count
