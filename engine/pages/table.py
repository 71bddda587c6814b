"""One request's pages, and `Pages`: layout, store and pools of one replica in one hand.

A request's pages in one group:

    logical pages:   0 .. first_page-1 | first_page .. first_page+len(page_ids)-1 |
                     freed (window)    | page_ids                                 | spare (held, not yet in use)

Everything a request can ever need is taken when it is admitted, so nothing it does later can fail for pages.
"""

from dataclasses import dataclass, field

from engine.facts import PageCounts
from engine.pages.layout import CacheLayout, PageGroup
from engine.pages.pool import PagePool
from engine.pages.store import PageStore
from engine.types import PageSpan


@dataclass
class PageTable:
    """One request's pages in one group."""

    group: PageGroup
    first_page: int
    page_ids: list[int]
    spare: list[int]

    @property
    def held(self) -> list[int]:
        return self.page_ids + self.spare

    @property
    def num_slots(self) -> int:
        """Positions below this have a page (or had one, before the window passed)."""
        return (self.first_page + len(self.page_ids)) * self.group.page_tokens

    @property
    def span(self) -> PageSpan:
        return PageSpan(first_page=self.first_page, page_ids=tuple(self.page_ids))

    def extend(self, num_tokens: int) -> None:
        """Give every position below `num_tokens` a page."""
        missing = self.group.num_pages(num_tokens) - self.first_page - len(self.page_ids)
        if missing > 0:
            assert missing <= len(self.spare), f"needs {missing} pages, has {len(self.spare)} spare"
            self.page_ids += self.spare[:missing]
            del self.spare[:missing]

    def trim(self, committed: int) -> None:
        """Make pages that no later token can see spare again."""
        passed = self.group.first_live_page(committed) - self.first_page
        if passed > 0:
            self.spare += self.page_ids[:passed]
            del self.page_ids[:passed]
            self.first_page += passed


@dataclass
class Tables:
    """One request's page tables, one for each group, held under one name."""

    holder: str
    groups: dict[str, PageTable] = field(default_factory=dict)

    def extend(self, num_tokens: int) -> None:
        for table in self.groups.values():
            table.extend(num_tokens)

    def trim(self, committed: int) -> None:
        for table in self.groups.values():
            table.trim(committed)

    def adopt(self, spans: dict[str, PageSpan], num_tokens: int) -> None:
        """Make fresh tables the image of a peer's: the same logical pages, in pages of our own."""
        for name, span in spans.items():
            table = self.groups[name]
            assert not table.page_ids
            table.first_page = span.first_page
            table.extend(num_tokens)

    @property
    def spans(self) -> dict[str, PageSpan]:
        return {name: table.span for name, table in self.groups.items()}


class Pages:
    """The pages of one replica."""

    def __init__(self, layout: CacheLayout, store: PageStore) -> None:
        self.layout = layout
        self.store = store
        self.pools = {name: PagePool(store.num_pages[name]) for name in layout.groups}
        self._quarantine: dict[str, dict[str, list[int]]] = {}

    def demand(self, num_tokens: int, step_tokens: int) -> dict[str, int]:
        """Pages of each group that a request of at most `num_tokens` holds, in steps of `step_tokens`."""
        return {n: g.peak_pages(num_tokens, step_tokens) for n, g in self.layout.groups.items()}

    def shortfall(self, demand: dict[str, int]) -> str | None:
        """Why `demand` could never be met, even by empty pools; None if it could."""
        for name, pages in demand.items():
            total = self.pools[name].num_pages
            if pages > total:
                return f"needs {pages} pages of group {name}; this replica has {total} in all"
        return None

    def reserve(self, holder: str, demand: dict[str, int]) -> Tables | None:
        """All of `demand`, held by `holder`, or None and nothing changed."""
        if any(count > self.pools[name].num_free for name, count in demand.items()):
            return None
        groups = {
            name: PageTable(group, 0, [], self.pools[name].take(demand[name], holder))
            for name, group in self.layout.groups.items()
        }
        return Tables(holder, groups)

    def release(self, tables: Tables) -> None:
        """Everything the request held, given back."""
        for name, table in tables.groups.items():
            self.pools[name].give_back(table.held, tables.holder)

    def clear(self, tables: Tables) -> None:
        """Zero the request's pages: what is not finite must not stay for the next holder, where 0 * NaN is NaN."""
        for name, table in tables.groups.items():
            self.store.records[name][table.held] = 0

    def quarantine(self, tables: Tables) -> None:
        """As `release`, but bytes may still arrive: the pages stay out of use until `settle(holder)`."""
        for name, table in tables.groups.items():
            self.pools[name].quarantine(table.held, tables.holder)
        self._quarantine[tables.holder] = {name: table.held for name, table in tables.groups.items()}

    def settle(self, holder: str) -> None:
        for name, page_ids in self._quarantine.pop(holder).items():
            self.pools[name].settle(page_ids)

    def counts(self) -> dict[str, PageCounts]:
        return {name: pool.counts() for name, pool in self.pools.items()}

    def assert_consistent(self) -> None:
        for pool in self.pools.values():
            pool.assert_consistent()

    def assert_idle(self) -> None:
        """Consistent, and every page is free: nothing was leaked."""
        self.assert_consistent()
        for name, pool in self.pools.items():
            assert pool.num_free == pool.num_pages, f"group {name} leaks pages: {pool.counts()}"
