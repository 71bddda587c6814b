"""Pages by example: prefixes, windows, evictions, copies."""

import pytest

from engine.pages import PageTable
from tests.engine.pages.contents import (
    FULL,
    GARBAGE,
    KEYS,
    LAYOUT,
    PAGE_TOKENS,
    SLIDING,
    STEP,
    WINDOW,
    Live,
    available,
    computed,
    some_pages,
)


@pytest.mark.parametrize(
    ("before", "now", "known"),
    [
        ([1] * 8, [1] * 8, 8),
        ([1] * 8, [1] * 11, 8),
        ([1] * 11, [1] * 11, 8),
        ([1] * 7, [1] * 7, 4),
        ([1] * 3, [1] * 3, 0),
        ([1] * 8 + [2] * 4, [1] * 8 + [3] * 4, 8),
        ([1, 1, 1, 2] + [1] * 8, [1] * 12, 0),
    ],
)
def test_the_prefix_hit_is_the_longest_common_run_of_full_pages(before: list[int], now: list[int], known: int) -> None:
    pages = some_pages()
    computed(pages, "before", before)

    assert pages.reuse(pages.open("now"), now) == known


def test_tenants_with_different_salts_share_nothing() -> None:
    pages = some_pages()
    computed(pages, "a", [1] * 12, salt="alice")

    assert pages.reuse(pages.open("b", "bob"), [1] * 12) == 0
    assert pages.reuse(pages.open("c"), [1] * 12) == 0
    assert pages.reuse(pages.open("d", "alice"), [1] * 12) == 12


def test_without_sharing_there_are_no_prefix_hits() -> None:
    pages = some_pages(sharing=False)
    live = computed(pages, "a", [1] * 12)

    assert pages.reuse(pages.open("b"), [1] * 12) == 0
    pages.release(live.tables)
    pages.assert_idle()
    assert pages.counts()[FULL].cached == 0


def test_a_prefix_ends_where_a_window_still_has_its_pages() -> None:
    """The window (10) at 20 needs the pages from position 10 on; they were freed and used again."""
    pages = some_pages(sliding=8)
    live = computed(pages, "a", [1] * 20)
    pages.trim(live.tables, 32)
    assert pages.extend(live.tables, 32)
    pages.release(pages.open("gap"))
    others = pages.open("others")
    assert pages.extend(others, pages.pools[SLIDING].num_available * PAGE_TOKENS)

    found = pages.open("b")

    assert pages.reuse(found, [1] * 20) == 0
    assert found.groups[FULL].page_ids == []


def test_a_prefix_with_a_window_begins_at_the_window() -> None:
    pages = some_pages()
    computed(pages, "a", [1] * 40)
    found = pages.open("b")

    assert pages.reuse(found, [1] * 40) == 40
    assert (len(found.groups[FULL].page_ids), found.groups[SLIDING].first_page) == (10, (40 - WINDOW) // PAGE_TOKENS)


def test_pages_before_every_window_need_not_be_cached() -> None:
    pages = some_pages(sliding=10)
    live = computed(pages, "a", [1] * 40)
    pages.trim(live.tables, 40)
    others = pages.open("others")
    taken = pages.pools[SLIDING].take(available(pages)[SLIDING], others.holder)  # the passed ones among them
    pages.pools[SLIDING].give_back(taken, others.holder)

    assert pages.reuse(pages.open("b"), [1] * 40) == 40


def test_least_recently_used_pages_are_evicted_first_and_ends_before_beginnings() -> None:
    pages = some_pages(full=9, sliding=9)
    for name, token in (("old", 1), ("new", 2)):
        pages.release(computed(pages, name, [token] * 16).tables)
    assert available(pages) == {FULL: 9, SLIDING: 9}

    taker = pages.open("taker")
    assert pages.extend(taker, 3 * PAGE_TOKENS)  # one was free; the last two pages of "old" go

    assert pages.reuse(pages.open("a"), [1] * 16) == 8
    assert pages.reuse(pages.open("b"), [2] * 16) == 16


def test_the_copy_of_a_last_page_belongs_to_its_request_alone() -> None:
    pages = some_pages()
    first = computed(pages, "a", [1] * 8)
    second = Live(pages.open("b"), "", [1] * 8, 8)
    assert pages.reuse(second.tables, [1] * 8) == 8

    assert pages.own_last_page(second.tables)

    second.assert_sees_its_own(pages)
    second.write(pages, 7, 8, GARBAGE)
    first.assert_sees_its_own(pages)
    assert second.tables.groups[FULL].page_ids[0] == first.tables.groups[FULL].page_ids[0]


def test_the_copy_is_found_when_the_original_is_gone() -> None:
    pages = some_pages(full=3, sliding=3)
    pages.release(computed(pages, "a", [1] * 8).tables)
    second = pages.open("b")
    pages.reuse(second, [1] * 8)
    assert pages.own_last_page(second)
    others = pages.open("others")
    assert pages.extend(others, PAGE_TOKENS)  # the original was the only page without a holder
    assert pages.reuse(pages.open("c"), [1] * 8) == 4

    pages.publish(second, [1] * 8, 8)

    assert pages.reuse(pages.open("d"), [1] * 8) == 8


def test_an_image_needs_room_for_more_than_it_holds() -> None:
    """It would otherwise be the first to lose its pages."""
    pages = some_pages(full=4)
    before = available(pages)

    assert pages.match_or_allocate(pages.open("a"), [1] * 12, num_tokens=12, max_tokens=17) is None
    assert available(pages) == before
    assert pages.match_or_allocate(pages.open("b"), [1] * 12, num_tokens=12, max_tokens=16) == 0
    assert available(pages)[FULL] == 1


def test_rolling_back_over_the_edge_of_a_window_restores_no_page() -> None:
    table = PageTable(LAYOUT.groups[SLIDING], first_page=2, page_ids=[5, 6, 7])

    assert table.pass_window(2 * PAGE_TOKENS + WINDOW - 1) == []
    assert (table.first_page, table.page_ids) == (2, [5, 6, 7])
    assert table.pass_window(3 * PAGE_TOKENS + WINDOW) == [5]


def test_a_page_is_copied_only_if_there_is_room_in_every_group() -> None:
    pages = some_pages(full=5, sliding=2)
    first = computed(pages, "a", [1] * 8)
    second = pages.open("b")
    pages.reuse(second, [1] * 8)
    before = second.spans

    assert not pages.own_last_page(second)

    assert second.spans == before
    for tables in (first.tables, second):
        pages.release(tables)
    pages.assert_idle()


@pytest.mark.parametrize("published", [True, False])
def test_clearing_zeroes_only_the_requests_own_pages(published: bool) -> None:
    pages = some_pages()
    first = computed(pages, "a", [1] * 4)
    second = Live(pages.open("b"), "", [1] * 14, 4)
    pages.reuse(second.tables, second.tokens)
    assert pages.extend(second.tables, 14)
    second.write(pages, 4, 14)
    pages.publish(second.tables, second.tokens, 9)
    shared, own, last = (second.tables.groups[FULL].page_ids[i] for i in (0, 1, 3))
    rows = pages.store.slab(KEYS[FULL]).rows

    pages.clear(second.tables, published)
    pages.release(second.tables)

    first.assert_sees_its_own(pages)
    assert rows[shared].all()
    assert not rows[last].any()
    assert rows[own].any() != published
    assert pages.reuse(pages.open("c"), second.tokens) == (4 if published else 8)


def test_a_window_group_holds_no_more_for_a_longer_context() -> None:
    group = LAYOUT.groups[SLIDING]

    assert group.peak_pages(10**6, STEP) == group.peak_pages(10**9, STEP) < 10
    assert LAYOUT.groups[FULL].peak_pages(10**6, STEP) == 10**6 // PAGE_TOKENS


@pytest.mark.parametrize("step", range(1, STEP + 1))
@pytest.mark.parametrize("first", range(1, STEP + 1))
def test_the_peak_is_enough_for_every_walk(first: int, step: int) -> None:
    """A first step of any length shifts all later ones against the edges of pages."""
    pages = some_pages()
    tables = pages.open("a")
    most = 0

    for end in range(first, 100, step):
        assert pages.extend(tables, end)
        most = max(most, len(tables.groups[SLIDING].page_ids))
        pages.trim(tables, end)

    assert tables.groups[SLIDING].first_page > 0
    assert most <= pages.peak_pages(100, STEP)[SLIDING]


def test_extending_takes_from_every_group_or_from_none() -> None:
    pages = some_pages(full=30, sliding=2)
    tables = pages.open("a")

    assert not pages.extend(tables, 3 * PAGE_TOKENS)
    pages.assert_idle()


def test_a_shortfall_names_the_group_and_both_numbers() -> None:
    pages = some_pages(full=5)

    assert pages.shortfall({FULL: 5, SLIDING: 1}) is None
    assert pages.shortfall({FULL: 6, SLIDING: 1}) == "needs 6 pages of group full; this replica has 5 in all"


def test_idle_means_that_every_page_was_released() -> None:
    pages = some_pages()
    assert pages.extend(pages.open("a"), 1)

    with pytest.raises(AssertionError, match="leaks pages"):
        pages.assert_idle()
