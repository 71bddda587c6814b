from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.pages import Tables
from engine.pages.prefix import PrefixNames
from prefill.lease import LeaseEnd, LeaseTable

TERM = 10.0
NONCES = [f"nonce-{i}" for i in range(5)]


class LeasesAgainstTheTable(RuleBasedStateMachine):
    """Random events at random times against the table in the docstring of `prefill/lease.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(TERM)
        self.now = 0.0
        self.deadlines: dict[str, float] = {}
        self.ended: dict[str, LeaseEnd] = {}

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, TERM]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(nonce=st.sampled_from(NONCES))
    def grant(self, nonce: str) -> None:
        if nonce not in self.deadlines and nonce not in self.ended:
            lease = self.table.grant(nonce, f"request of {nonce}", Tables(nonce, {}, PrefixNames(16)), self.now)
            self.deadlines[nonce] = lease.deadline
            assert lease.deadline == self.now + TERM

    @rule(nonce=st.sampled_from(NONCES))
    def renew(self, nonce: str) -> None:
        assert self.table.renew(nonce, self.now) == self.is_held(nonce)
        if self.is_held(nonce):
            self.deadlines[nonce] = self.now + TERM

    @rule(nonce=st.sampled_from(NONCES))
    def release(self, nonce: str) -> None:
        lease = self.table.release(nonce, self.now)
        assert (lease is not None) == self.is_held(nonce)
        if lease is not None:
            self.end(nonce, LeaseEnd.RELEASED)

    @rule(nonce=st.sampled_from(NONCES))
    def cancel(self, nonce: str) -> None:
        lease = self.table.cancel(f"request of {nonce}")
        assert (lease is not None) == (nonce in self.deadlines)
        if lease is not None:
            self.end(nonce, LeaseEnd.CANCELLED)

    @rule()
    def expire(self) -> None:
        late = {nonce for nonce, deadline in self.deadlines.items() if deadline <= self.now}
        assert {lease.nonce for lease in self.table.expire(self.now)} == late
        for nonce in late:
            self.end(nonce, LeaseEnd.EXPIRED)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.table) == len(self.deadlines)
        assert self.table.ended == {end: n for end in LeaseEnd if (n := [*self.ended.values()].count(end))}

    def is_held(self, nonce: str) -> bool:
        return self.deadlines.get(nonce, 0.0) > self.now

    def end(self, nonce: str, end: LeaseEnd) -> None:
        assert nonce not in self.ended, "a lease has one end"
        self.ended[nonce] = end
        del self.deadlines[nonce]


TestLeasesAgainstTheTable = LeasesAgainstTheTable.TestCase
TestLeasesAgainstTheTable.settings = settings(max_examples=150, stateful_step_count=40)


def test_a_term_that_is_over_cannot_be_renewed_before_anyone_noticed() -> None:
    table = LeaseTable(TERM)
    table.grant("n", "r", Tables("r", {}, PrefixNames(16)), now=0.0)

    assert not table.renew("n", now=TERM)
    assert len(table) == 1, "it is held until its pages are taken back"


def test_a_read_that_ends_with_the_term_does_not_count() -> None:
    table = LeaseTable(TERM)
    table.grant("n", "r", Tables("r", {}, PrefixNames(16)), now=0.0)

    assert table.release("n", now=TERM) is None
    assert [lease.nonce for lease in table.expire(now=TERM)] == ["n"]
