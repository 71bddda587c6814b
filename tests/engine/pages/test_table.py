"""Requests that share, draft, step back and end in any order always find their own contents."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.engine.pages.contents import GARBAGE, PAGE_TOKENS, STEMS, STEP, Live, available, some_pages


class PagesAgainstContents(RuleBasedStateMachine):
    """Requests that begin alike, draft, step back, publish, run out of pages and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = some_pages(full=24, sliding=14)
        self.live: dict[str, Live] = {}
        self.quarantined: set[str] = set()
        self.names = (f"request-{i}" for i in range(10**6))

    @rule(
        stem=st.sampled_from(STEMS), length=st.integers(1, 60), salt=st.sampled_from(["", "tenant"]), own=st.booleans()
    )
    def begin(self, stem: list[int], length: int, salt: str, own: bool) -> None:
        name, tokens = next(self.names), stem[:length]
        tables = self.pages.open(name, salt)
        known = self.pages.reuse(tables, tokens)
        assert known % PAGE_TOKENS == 0
        assert known <= length
        live = self.live[name] = Live(tables, salt, tokens, known)
        live.assert_sees_its_own(self.pages)
        if known and own and self.pages.own_last_page(tables):
            live.write(self.pages, known - 1, known, GARBAGE)  # no other request may see this
            live.committed = known - 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), spare=st.integers(0, 10))
    def hand_over(self, data: st.DataObject, spare: int) -> None:
        """The image of a request's tables, as a decode replica makes it; what is not here already is read."""
        old = self._any(data)
        self.pages.trim(old.tables, old.committed)
        before = available(self.pages)
        tables = self.pages.open(next(self.names), old.salt)
        known = self.pages.match_or_allocate(tables, old.tokens, old.committed, old.committed + spare)
        if known is None:
            assert available(self.pages) == before
            return
        live = self.live[tables.holder] = Live(tables, old.salt, old.tokens, old.committed)
        for name, table in tables.groups.items():
            assert table.first_page == old.tables.groups[name].first_page
            assert table.end_page == table.group.num_pages(old.committed)
        live.read_what_is_missing(self.pages)
        self.pages.publish(tables, live.tokens, live.committed)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), steps=st.integers(1, 12), published=st.booleans())
    def grow(self, data: st.DataObject, steps: int, published: bool) -> None:
        """Trim, extend, compute; then commit some: what was drafted beyond it is simply forgotten."""
        live = self._any(data)
        for _ in range(steps):
            self.pages.trim(live.tables, live.committed)
            end = min(live.committed + STEP, len(live.tokens))
            before = available(self.pages)
            if not self.pages.extend(live.tables, end):
                assert available(self.pages) == before
                assert any(before[n] < count for n, count in self.pages.missing(live.tables, end).items())
                return
            committed = data.draw(st.integers(min(live.committed + 1, end), end))
            live.write(self.pages, live.committed, committed)
            live.write(self.pages, committed, end, GARBAGE)
            live.committed = committed
            if published:
                self.pages.publish(live.tables, live.tokens, live.committed)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), how=st.sampled_from(["release", "clear", "clear published", "quarantine"]))
    def end(self, data: st.DataObject, how: str) -> None:
        """Others that share its pages go on."""
        live = self.live.pop(self._any(data).tables.holder)
        if how == "quarantine":
            self.pages.quarantine(live.tables)
            self.quarantined.add(live.tables.holder)
            return
        if how != "release":
            self.pages.clear(live.tables, published=how == "clear published")
        self.pages.release(live.tables)

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def release_quarantine(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.quarantined)))
        self.pages.release_quarantine(holder)
        self.quarantined.remove(holder)

    @rule()
    def forget_cached(self) -> None:
        self.pages.forget_cached()
        assert all(counts.cached == 0 for counts in self.pages.counts().values())

    @invariant()
    def everybody_sees_what_it_wrote_or_would_have_written(self) -> None:
        self.pages.assert_consistent()
        for live in self.live.values():
            live.assert_sees_its_own(self.pages)

    def teardown(self) -> None:
        for live in self.live.values():
            self.pages.release(live.tables)
        for holder in self.quarantined:
            self.pages.release_quarantine(holder)
        self.pages.assert_idle()

    def _any(self, data: st.DataObject) -> Live:
        return self.live[data.draw(st.sampled_from(sorted(self.live)))]


TestPagesAgainstContents = PagesAgainstContents.TestCase
TestPagesAgainstContents.settings = settings(max_examples=150, stateful_step_count=40)
