from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.pages import CacheLayout, Entry, Pages, PageStore, Tables

PAGE_TOKENS, WINDOW, STEP = 4, 10, 6
LAYOUT = CacheLayout.of(
    [
        Entry(layer=0, name="k", shape=(1,), dtype=torch.float32),
        Entry(layer=1, name="k", shape=(1,), dtype=torch.float32, window=WINDOW),
    ],
    PAGE_TOKENS,
)
FULL, SLIDING = "full", f"window{WINDOW}"


def some_pages(full: int = 30, sliding: int = 20) -> Pages:
    return Pages(LAYOUT, PageStore(LAYOUT, {FULL: full, SLIDING: sliding}, torch.device("cpu")))


@dataclass
class Live:
    tables: Tables
    most_tokens: int
    committed: int
    reached: int  # the furthest position that was ever given a page
    peak: dict[str, int]


class TablesAgainstPositions(RuleBasedStateMachine):
    """Requests that grow, step back to what was committed, move to other pages and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = some_pages()
        self.live: dict[str, Live] = {}
        self.quarantined: set[str] = set()
        self.names = (f"request-{i}" for i in range(10**6))

    @rule(most_tokens=st.integers(1, 60))
    def reserve(self, most_tokens: int) -> None:
        free = {name: pool.num_free for name, pool in self.pages.pools.items()}
        peak = self.pages.demand(most_tokens, STEP)
        name = next(self.names)
        tables = self.pages.reserve(name, peak)
        if tables is None:
            assert any(peak[group] > free[group] for group in peak)
            assert {n: pool.num_free for n, pool in self.pages.pools.items()} == free
        else:
            self.live[name] = Live(tables, most_tokens, 0, 0, peak)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Trim, extend, then commit some of the step: what was drafted beyond it is simply forgotten."""
        live = self._any(data)
        live.tables.trim(live.committed)
        end = data.draw(st.integers(live.committed, min(live.committed + STEP, live.most_tokens)))
        live.tables.extend(end)
        live.reached = max(live.reached, end)
        live.committed = data.draw(st.integers(live.committed, end))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        """A peer's tables become the image of ours; then ours end."""
        old = self._any(data)
        old.tables.trim(old.committed)
        tables = self.pages.reserve(next(self.names), old.peak)
        if tables is None:
            return
        spans = old.tables.spans
        tables.adopt(spans, old.reached)
        for name, span in spans.items():
            mine = tables.groups[name]
            assert (mine.first_page, len(mine.page_ids)) == (span.first_page, len(span.page_ids))
        self.pages.release(self.live.pop(old.tables.holder).tables)
        self.live[tables.holder] = Live(tables, old.most_tokens, old.committed, old.reached, old.peak)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pages.release(self.live.pop(self._any(data).tables.holder).tables)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        holder = self._any(data).tables.holder
        self.pages.quarantine(self.live.pop(holder).tables)
        self.quarantined.add(holder)

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.quarantined)))
        self.pages.settle(holder)
        self.quarantined.remove(holder)

    @invariant()
    def every_visible_position_has_its_own_page(self) -> None:
        self.pages.assert_consistent()
        for live in self.live.values():
            for name, table in live.tables.groups.items():
                first = 0 if name == FULL else max(0, live.committed - WINDOW + 1)
                covered = range(table.first_page * PAGE_TOKENS, table.num_slots)
                assert all(p in covered for p in range(first, live.reached))
                assert len(table.held) == len(set(table.held)) == live.peak[name]

    def teardown(self) -> None:
        for live in self.live.values():
            self.pages.release(live.tables)
        for holder in self.quarantined:
            self.pages.settle(holder)
        self.pages.assert_idle()

    def _any(self, data: st.DataObject) -> Live:
        return self.live[data.draw(st.sampled_from(sorted(self.live)))]


TestTablesAgainstPositions = TablesAgainstPositions.TestCase
TestTablesAgainstPositions.settings = settings(max_examples=150, stateful_step_count=40)


@pytest.mark.parametrize("step", range(1, STEP + 1))
@pytest.mark.parametrize("first", range(1, STEP + 1))
def test_what_was_reserved_is_enough_for_every_walk(first: int, step: int) -> None:
    """A first step of any length shifts all later ones against the edges of pages."""
    pages = some_pages()
    tables = pages.reserve("a", pages.demand(100, STEP))
    assert tables is not None

    for end in range(first, 100, step):
        tables.extend(end)
        tables.trim(end)

    assert tables.groups[SLIDING].first_page > 0


def test_a_window_group_holds_no_more_for_a_longer_context() -> None:
    group = LAYOUT.groups[SLIDING]

    assert group.peak_pages(10**6, STEP) == group.peak_pages(10**9, STEP) < 10
    assert LAYOUT.groups[FULL].peak_pages(10**6, STEP) == 10**6 // PAGE_TOKENS


def test_pages_behind_the_window_are_used_again() -> None:
    pages = some_pages()
    tables = pages.reserve("a", pages.demand(60, STEP))
    assert tables is not None
    tables.extend(12)
    before = tables.groups[SLIDING].page_ids[0]

    tables.trim(WINDOW + PAGE_TOKENS)

    assert tables.groups[SLIDING].first_page == 1
    assert before in tables.groups[SLIDING].spare


def test_reserving_takes_from_every_group_or_from_none() -> None:
    pages = some_pages(full=30, sliding=2)

    assert pages.reserve("a", {FULL: 3, SLIDING: 3}) is None
    pages.assert_idle()


def test_a_shortfall_names_the_group_and_both_numbers() -> None:
    pages = some_pages(full=5)

    assert pages.shortfall({FULL: 5, SLIDING: 1}) is None
    assert pages.shortfall({FULL: 6, SLIDING: 1}) == "needs 6 pages of group full; this replica has 5 in all"


def test_idle_means_that_every_page_came_back() -> None:
    pages = some_pages()
    pages.reserve("a", {FULL: 1, SLIDING: 1})

    with pytest.raises(AssertionError, match="leaks pages"):
        pages.assert_idle()
