import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.pages import PagePool

NUM_PAGES = 12


class PoolAgainstModel(RuleBasedStateMachine):
    """Random calls against the obvious model: a set of holders for each page."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.holders: dict[int, set[str]] = {}
        self.quarantined: set[int] = set()
        self.names = (f"holder-{i}" for i in range(10**6))

    @rule(count=st.integers(0, NUM_PAGES))
    def take(self, count: int) -> None:
        count = min(count, self.pool.num_free)
        name = next(self.names)
        pages = self.pool.take(count, name)
        assert len(set(pages)) == count
        assert not set(pages) & (set(self.holders) | self.quarantined), "a page was handed out twice"
        self.holders |= {page: {name} for page in pages}

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.holders)), unique=True))
        name = next(self.names)
        self.pool.share(pages, name)
        for page in pages:
            self.holders[page].add(name)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set().union(*self.holders.values()))))
        mine = [page for page, names in self.holders.items() if name in names]
        self.pool.give_back(mine, name)
        self._let_go(mine, name)

    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        alone = sorted({min(names) for names in self.holders.values() if len(names) == 1})
        if not alone:
            return
        name = data.draw(st.sampled_from(alone))
        mine = [page for page, names in self.holders.items() if names == {name}]
        self.pool.quarantine(mine, name)
        self._let_go(mine, name)
        self.quarantined |= set(mine)

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.quarantined)), unique=True))
        self.pool.settle(pages)
        self.quarantined -= set(pages)

    @invariant()
    def counts_agree_with_the_model(self) -> None:
        self.pool.assert_consistent()
        counts = self.pool.counts()
        assert (counts.held, counts.quarantined) == (len(self.holders), len(self.quarantined))
        assert counts.free == NUM_PAGES - counts.held - counts.quarantined

    def _let_go(self, pages: list[int], name: str) -> None:
        for page in pages:
            self.holders[page].remove(name)
            if not self.holders[page]:
                del self.holders[page]


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
    pool.share(pages, "b")

    with pytest.raises(AssertionError, match="being read into"):
        pool.quarantine(pages, "a")


def test_nobody_gives_back_what_it_does_not_hold() -> None:
    pool = PagePool(2)
    pages = pool.take(1, "a")

    with pytest.raises(KeyError):
        pool.give_back(pages, "b")


def test_the_check_sees_a_page_that_is_in_no_state() -> None:
    pool = PagePool(3)
    pool._free.pop()

    with pytest.raises(AssertionError):
        pool.assert_consistent()
