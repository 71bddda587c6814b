"""The table of a handoff's states and actions, against the one in its docstring and against what must always hold."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import decode.handoff_reads
from decode.handoff_reads import IGNORED, LIVE, TRANSITIONS, Incoming, ReadAction, ReadEvent, ReadPhase

ANY: Any = None
PAIRS = [*itertools.product(ReadPhase, ReadEvent)]


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """The rows of the docstring: (state, event) -> (next, actions)."""
    rows = re.findall(r"^    (\w+) +(\w+) +(\w+)  +(\S.*)$", decode.handoff_reads.__doc__ or "", re.MULTILINE)
    return {(state, event): (after, actions) for state, event, after, actions in rows if state != "state"}


def incoming(phase: ReadPhase = ReadPhase.WAITING) -> Incoming:
    return Incoming(handoff=ANY, sequence=ANY, tables=ANY, arrived=0, renew_at=0, deadline=0, phase=phase)


def test_the_documented_table_has_a_row_for_every_transition() -> None:
    assert documented() == {pair: (after, ", ".join(do) or "-") for pair, (after, do) in TRANSITIONS.items()}


@pytest.mark.parametrize(("phase", "event"), PAIRS, ids=str)
def test_every_event_follows_the_table_in_every_phase(phase: ReadPhase, event: ReadEvent) -> None:
    """Without a row, an event that may come late changes nothing, and any other cannot happen."""
    one, row = incoming(phase), documented().get((phase, event))

    if row is None and event not in IGNORED:
        with pytest.raises(AssertionError, match=f"{event} cannot happen while {phase}"):
            one.on(event)
        return
    actions = one.on(event)

    after, expected = row or (phase, "-")
    assert one.phase == after
    assert (", ".join(actions) or "-") == expected
    assert one.cause == (f"{phase} ({event})" if row else "")


@pytest.mark.parametrize("phase", sorted(LIVE))
def test_every_phase_leads_to_an_end(phase: ReadPhase) -> None:
    reached = {phase}
    while more := {after for (p, _), (after, _) in TRANSITIONS.items() if p in reached} - reached:
        reached |= more

    assert reached - LIVE, f"{phase} never ends"


def test_a_final_phase_is_never_left() -> None:
    ends = set(ReadPhase) - LIVE

    assert ends == {ReadPhase.ADMITTED, ReadPhase.LOST, ReadPhase.CANCELLED, ReadPhase.GONE}
    assert not {phase for phase, _ in TRANSITIONS} & ends


@pytest.mark.parametrize("phase", sorted(LIVE - {ReadPhase.DRAINING}))
def test_cancel_and_timeout_end_or_drain_every_phase_that_waits_for_the_peer(phase: ReadPhase) -> None:
    """A phase that only the peer can end would hold its pages for ever once the peer is gone."""
    for event in (ReadEvent.CANCEL, ReadEvent.TIMEOUT):
        after, _ = TRANSITIONS[phase, event]
        assert after not in (phase, ReadPhase.ADMITTED)


@given(st.lists(st.sampled_from(ReadEvent), max_size=12))
def test_pages_and_lease_are_released_once_in_every_order_of_events(events: list[ReadEvent]) -> None:
    """In any sequence of possible events, pages are released once, and never while bytes may arrive."""
    one, done = incoming(), list[ReadAction]()
    for event in events:
        if (one.phase, event) in TRANSITIONS or event in IGNORED:
            done += one.on(event)

    times = {action: done.count(action) for action in ReadAction}
    A, P = ReadAction, ReadPhase
    once = [a for a in A if a not in (A.RENEW_LEASE, A.EXTEND_DEADLINE)]
    assert all(times[action] <= 1 for action in once)
    taken = times[A.POST_READ]
    kept = one.phase in (P.READING, P.RELEASING, P.ADMITTED)
    draining = one.phase == P.DRAINING
    assert taken == kept + times[A.GIVE_BACK_PAGES] + times[A.QUARANTINE_PAGES]
    assert times[A.QUARANTINE_PAGES] == draining + times[A.RELEASE_QUARANTINE]
    if times[A.RELEASE_QUARANTINE]:
        assert done.index(A.QUARANTINE_PAGES) < done.index(A.RELEASE_QUARANTINE)
    assert times[A.COUNT_READ] >= (one.phase == P.ADMITTED), "a handoff is admitted after a whole read"
    if one.phase == P.ADMITTED:
        assert times[A.RELEASE_LEASE] == 1 and not times[A.REPORT_LOST]
    if one.phase == P.LOST:
        assert times[A.REPORT_LOST] == 1
    if one.phase == P.CANCELLED:
        assert not times[A.REPORT_LOST]


@given(st.lists(st.sampled_from(ReadEvent), max_size=12))
def test_a_lease_is_released_unless_prefill_answered_that_it_is_not_held(events: list[ReadEvent]) -> None:
    """A lease that is not released keeps its pages in prefill until it expires."""
    one, done, lost = incoming(), list[ReadAction](), False
    for event in events:
        if (one.phase, event) in TRANSITIONS or event in IGNORED:
            lost = lost or (event == ReadEvent.NOT_HELD and one.phase in (ReadPhase.WAITING, ReadPhase.READING))
            done += one.on(event)

    ends = one.phase not in (ReadPhase.WAITING, ReadPhase.READING)
    assert done.count(ReadAction.RELEASE_LEASE) == (ends and not lost)
