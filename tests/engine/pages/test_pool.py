import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.pages import PagePool
from engine.pages.prefix import PageName

NUM_PAGES = 12


class PoolAgainstModel(RuleBasedStateMachine):
    """Random calls against the obvious model: holders, names and ages of pages."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.holders: dict[int, set[str]] = {}
        self.names: dict[int, PageName] = {}
        self.cached: list[int] = []
        self.quarantined: set[int] = set()
        self.ids = (f"holder-{i}" for i in range(10**6))

    @rule(count=st.integers(0, NUM_PAGES))
    def take(self, count: int) -> None:
        free = NUM_PAGES - len(self.holders) - len(self.quarantined) - len(self.cached)
        count = min(count, free + len(self.cached))
        holder = next(self.ids)
        pages = self.pool.take(count, holder)
        assert len(set(pages)) == count
        assert not set(pages) & (set(self.holders) | self.quarantined), "a page was handed out twice"
        evicted, self.cached = self.cached[: max(0, count - free)], self.cached[max(0, count - free) :]
        assert set(evicted) <= set(pages), "the oldest go first, and only when no other is free"
        for page in evicted:
            del self.names[page]
        self.holders |= {page: {holder} for page in pages}

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), digest=st.sampled_from([b"a", b"b", b"c"]))
    def publish(self, data: st.DataObject, digest: bytes) -> None:
        page, name = data.draw(st.sampled_from(sorted(self.holders))), PageName(digest, (1,))
        self.pool.publish(page, name)
        if name not in self.names.values() and page not in self.names:
            self.names[page] = name

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.names)), unique=True))
        holder = next(self.ids)
        self.pool.share(pages, holder)
        for page in pages:
            self.holders.setdefault(page, set()).add(holder)
            if page in self.cached:
                self.cached.remove(page)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.holders)))
        self.pool.withdraw([page])
        self.names.pop(page, None)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(set().union(*self.holders.values()))))
        mine = [page for page, names in self.holders.items() if holder in names]
        self.pool.give_back(mine, holder)
        self.cached += [page for page in self._let_go(mine, holder) if page in self.names]

    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        alone = {page: min(names) for page, names in self.holders.items() if len(names) == 1 and page not in self.names}
        if not alone:
            return
        holder = data.draw(st.sampled_from(sorted(alone.values())))
        mine = [page for page, name in alone.items() if name == holder]
        self.pool.quarantine(mine, holder)
        self._let_go(mine, holder)
        self.quarantined |= set(mine)

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def release_quarantine(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.quarantined)), unique=True))
        self.pool.release_quarantine(pages)
        self.quarantined -= set(pages)

    @invariant()
    def pool_and_model_agree(self) -> None:
        self.pool.assert_consistent()
        counts = self.pool.counts()
        states = (len(self.holders), len(self.quarantined), len(self.cached))
        assert (counts.held, counts.quarantined, counts.cached) == states
        assert counts.free == NUM_PAGES - sum(states)
        for digest in (b"a", b"b", b"c"):
            name = PageName(digest, (1,))
            assert self.pool.find(name) == next((page for page, n in self.names.items() if n == name), None)

    def _let_go(self, pages: list[int], holder: str) -> list[int]:
        """Return the pages without a holder."""
        for page in pages:
            self.holders[page].remove(holder)
        gone = [page for page in pages if not self.holders[page]]
        for page in gone:
            del self.holders[page]
        return gone


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=150, stateful_step_count=40)


def test_the_scratch_page_is_never_handed_out() -> None:
    assert 0 not in PagePool(5).take(5, "a")


def test_the_lowest_free_pages_go_first_so_that_they_adjoin() -> None:
    pool = PagePool(8)
    pool.take(8, "a")

    pool.give_back([6, 2, 3], "a")

    assert pool.take(3, "b") == [2, 3, 6]


def test_a_page_being_read_into_cannot_have_another_holder() -> None:
    pool = PagePool(2)
    pages = pool.take(1, "a")
    pool.publish(pages[0], PageName(b"x", (1,)))
    pool.share(pages, "b")

    with pytest.raises(AssertionError, match="being read into"):
        pool.quarantine(pages, "a")


def test_only_a_page_with_a_name_is_shared() -> None:
    pool = PagePool(2)

    with pytest.raises(AssertionError, match="has no name"):
        pool.share(pool.take(1, "a"), "b")


def test_only_a_holder_can_release_a_page() -> None:
    pool = PagePool(2)
    pages = pool.take(1, "a")

    with pytest.raises(KeyError):
        pool.give_back(pages, "b")


def test_the_check_sees_a_page_that_is_in_no_state() -> None:
    pool = PagePool(3)
    pool._free.pop()

    with pytest.raises(AssertionError):
        pool.assert_consistent()
