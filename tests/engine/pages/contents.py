"""Pages whose every position says which tokens lead to it: the plainest model of what a request must find."""

from dataclasses import dataclass

import torch

from engine.pages import CacheLayout, Entry, Pages, PageStore, Tables

PAGE_TOKENS, WINDOW, STEP = 4, 10, 6
LAYOUT = CacheLayout.of(
    [
        Entry(layer=0, name="k", shape=(1,), dtype=torch.int64),
        Entry(layer=1, name="k", shape=(1,), dtype=torch.int64, window=WINDOW),
    ],
    PAGE_TOKENS,
)
FULL, SLIDING = "full", f"window{WINDOW}"
KEYS = {FULL: ("target", 0, "k"), SLIDING: ("target", 1, "k")}
GARBAGE = -7
# Three conversations that part ways: within a page, at the end of one, and never.
STEMS = [[1] * 60, [1] * 14 + [2] * 46, [1] * 16 + [3] * 44]


def some_pages(full: int = 30, sliding: int = 20, sharing: bool = True) -> Pages:
    return Pages(LAYOUT, PageStore(LAYOUT, {FULL: full, SLIDING: sliding}, torch.device("cpu")), sharing)


def available(pages: Pages) -> dict[str, int]:
    return {name: pool.num_available for name, pool in pages.pools.items()}


@dataclass
class Live:
    tables: Tables
    salt: str
    tokens: list[int]
    committed: int

    def content(self, position: int) -> int:
        """What a model would have written there: it depends on all tokens up to here."""
        return hash((self.salt, tuple(self.tokens[: position + 1]))) >> 1

    def write(self, pages: Pages, start: int, end: int, value: int | None = None) -> None:
        for name, table in self.tables.groups.items():
            rows = pages.store.slab(KEYS[name]).rows
            for position in range(start, end):
                page = table.page_ids[position // PAGE_TOKENS - table.first_page]
                rows[page, position % PAGE_TOKENS] = self.content(position) if value is None else value

    def read_what_is_missing(self, pages: Pages) -> None:
        """Fill the pages that cannot have been filled yet: those without a name."""
        for name, table in self.tables.groups.items():
            for position in range(table.first_page * PAGE_TOKENS, self.committed):
                page = table.page_ids[position // PAGE_TOKENS - table.first_page]
                if not pages.pools[name].is_published(page):
                    pages.store.slab(KEYS[name]).rows[page, position % PAGE_TOKENS] = self.content(position)

    def assert_sees_its_own(self, pages: Pages) -> None:
        for name, table in self.tables.groups.items():
            rows = pages.store.slab(KEYS[name]).rows
            first = 0 if name == FULL else max(0, self.committed - WINDOW + 1)
            for position in range(first, self.committed):
                page = table.page_ids[position // PAGE_TOKENS - table.first_page]
                assert rows[page, position % PAGE_TOKENS].item() == self.content(position), (name, position)


def computed(pages: Pages, name: str, tokens: list[int], salt: str = "") -> Live:
    """A request that has been through the model in one step, its pages published."""
    live = Live(pages.open(name, salt), salt, tokens, 0)
    assert pages.extend(live.tables, len(tokens))
    live.write(pages, 0, len(tokens))
    live.committed = len(tokens)
    pages.publish(live.tables, tokens, len(tokens))
    return live
