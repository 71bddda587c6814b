"""Leases: the table against the one in its docstring, and `LeaseTable` against random events at random times."""

import re
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import prefill.lease
from engine.errors import HandoffLost
from engine.pages import Tables
from engine.pages.prefix import PrefixNames
from prefill.lease import TRANSITIONS, LeaseEvent, LeaseState, LeaseTable

TERM = 10.0
NONCES = [f"nonce-{i}" for i in range(5)]


class CountedPages:
    """Pages that count how often each holder's were given back."""

    def __init__(self) -> None:
        self.released: Counter[str] = Counter()

    def release(self, tables: Tables) -> None:
        self.released[tables.holder] += 1


def lease_table() -> tuple[LeaseTable, CountedPages]:
    pages: Any = CountedPages()
    return LeaseTable(pages, TERM), pages


def tables_of(nonce: str) -> Tables:
    return Tables(nonce, {}, PrefixNames(16))


def test_the_documented_table_has_a_row_for_every_transition() -> None:
    rows = re.findall(r"^    (held) +(\w+) +(\w+)  +(\S.*)$", prefill.lease.__doc__ or "", re.MULTILINE)
    documented = {(state, event): (after, actions) for state, event, after, actions in rows}

    expected = {pair: (after, ", ".join(actions) or "-") for pair, (after, actions) in TRANSITIONS.items()}
    assert documented == expected


def test_every_event_has_a_row_for_a_lease_that_is_held() -> None:
    """`LeaseTable` keeps only held leases, so no other case exists."""
    assert {*TRANSITIONS} == {(LeaseState.HELD, event) for event in LeaseEvent}


class LeasesAgainstTheTable(RuleBasedStateMachine):
    """Random events at random times against the table in the docstring of `prefill/lease.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.pages = lease_table()
        self.now = 0.0
        self.deadlines: dict[str, float] = {}
        self.ended: dict[str, LeaseState] = {}
        self.given_back: Counter[str] = Counter()
        self.reported: list[tuple[str, bool]] = []

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, TERM]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(nonce=st.sampled_from(NONCES))
    def grant(self, nonce: str) -> None:
        if nonce not in self.deadlines and nonce not in self.ended:
            lease = self.table.grant(nonce, f"request of {nonce}", tables_of(nonce), self.now)
            self.deadlines[nonce] = lease.deadline
            assert lease.deadline == self.now + TERM

    @rule(nonce=st.sampled_from(NONCES))
    def renew(self, nonce: str) -> None:
        assert self.table.renew(nonce, self.now) == self.is_held(nonce)
        if self.is_held(nonce):
            self.deadlines[nonce] = self.now + TERM

    @rule(nonce=st.sampled_from(NONCES))
    def release(self, nonce: str) -> None:
        released = self.table.release(nonce, self.now)
        assert released == self.is_held(nonce)
        if released:
            self.end(nonce, LeaseState.RELEASED)
            self.reported.append((nonce, True))

    @rule(nonce=st.sampled_from(NONCES))
    def hand_over(self, nonce: str) -> None:
        if self.is_held(nonce):
            assert self.table.hand_over(nonce, self.now).holder == nonce
            self.end(nonce, LeaseState.RELEASED, given_back=False)

    @rule(nonce=st.sampled_from(NONCES))
    def cancel(self, nonce: str) -> None:
        cancelled = self.table.cancel(f"request of {nonce}", self.now)
        assert cancelled == (nonce in self.deadlines)
        if cancelled:
            self.end(nonce, LeaseState.CANCELLED)

    @rule()
    def expire(self) -> None:
        late = [nonce for nonce, deadline in self.deadlines.items() if deadline <= self.now]
        assert self.table.expire(self.now) == len(late)
        for nonce in late:
            self.end(nonce, LeaseState.EXPIRED)
            self.reported.append((nonce, False))

    @rule()
    def take_events(self) -> None:
        events = self.table.pending_events()
        assert all(event.error is None or isinstance(event.error, HandoffLost) for event in events)
        found = [(event.request_id, event.error is None) for event in events]
        assert sorted(found) == sorted((f"request of {nonce}", read) for nonce, read in self.reported)
        self.reported = []

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.table) == len(self.deadlines)
        assert self.table.ended == {end: n for end in LeaseState if (n := [*self.ended.values()].count(end))}

    @invariant()
    def pages_are_given_back_once_and_never_while_they_are_held(self) -> None:
        assert self.pages.released == self.given_back

    def is_held(self, nonce: str) -> bool:
        return self.deadlines.get(nonce, 0.0) > self.now

    def end(self, nonce: str, end: LeaseState, given_back: bool = True) -> None:
        assert nonce not in self.ended, "a lease has one end"
        self.ended[nonce] = end
        self.given_back[nonce] += given_back
        del self.deadlines[nonce]


TestLeasesAgainstTheTable = LeasesAgainstTheTable.TestCase
TestLeasesAgainstTheTable.settings = settings(max_examples=150, stateful_step_count=40)


def test_an_expired_lease_cannot_be_renewed_before_its_expiry_is_processed() -> None:
    table, pages = lease_table()
    table.grant("n", "r", tables_of("n"), now=0.0)

    assert not table.renew("n", now=TERM)
    assert len(table) == 1, "it is held until its pages are taken back"
    assert not pages.released


def test_a_read_that_ends_at_the_expiry_does_not_count() -> None:
    table, pages = lease_table()
    table.grant("n", "r", tables_of("n"), now=0.0)

    assert not table.release("n", now=TERM)
    assert table.expire(now=TERM) == 1
    assert [(event.request_id, type(event.error)) for event in table.pending_events()] == [("r", HandoffLost)]
    assert pages.released == {"n": 1}
