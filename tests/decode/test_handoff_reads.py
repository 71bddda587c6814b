"""The table of a read's life, against the one that its docstring draws."""

import itertools
import re

import pytest

import decode.handoff_reads
from decode.handoff_reads import LIVE, TRANSITIONS, Incoming, ReadEvent, ReadPhase


def documented() -> dict[tuple[str, str], str]:
    """The rows of the docstring: state, event, next."""
    rows = re.findall(r"^    (\w+) +(\w+) +(\w+)  +\S", decode.handoff_reads.__doc__ or "", re.MULTILINE)
    return {(state, event): after for state, event, after in rows if state != "state"}


@pytest.mark.parametrize(("phase", "event"), [*itertools.product(ReadPhase, ReadEvent)], ids=str)
def test_every_event_does_in_every_phase_what_the_table_says(phase: ReadPhase, event: ReadEvent) -> None:
    incoming = Incoming(handoff=None, sequence=None, arrived=0, renew_at=0, deadline=0, phase=phase)
    after = documented().get((phase, event))

    moved = incoming.on(event)

    assert moved == (after is not None)
    assert incoming.phase == (after or phase)


def test_the_documented_table_has_a_row_for_every_transition() -> None:
    assert documented() == {(str(p), str(e)): str(after) for (p, e), after in TRANSITIONS.items()}


@pytest.mark.parametrize("phase", sorted(LIVE))
def test_every_phase_leads_to_an_end(phase: ReadPhase) -> None:
    reached = {phase}
    while more := {after for (p, _), after in TRANSITIONS.items() if p in reached} - reached:
        reached |= more

    assert reached - LIVE, f"{phase} never ends"


def test_an_end_is_final() -> None:
    ends = set(ReadPhase) - LIVE

    assert ends == {ReadPhase.ADMITTED, ReadPhase.LOST, ReadPhase.CANCELLED, ReadPhase.GONE}
    assert not {phase for phase, _ in TRANSITIONS} & ends


@pytest.mark.parametrize("phase", sorted(LIVE - {ReadPhase.DRAINING}))
def test_cancel_and_timeout_end_or_drain_every_phase_that_waits_for_someone(phase: ReadPhase) -> None:
    """A phase that only the other side can end would hold its pages for ever when the other side is gone."""
    for event in (ReadEvent.CANCEL, ReadEvent.TIMEOUT):
        assert TRANSITIONS[phase, event] not in (phase, ReadPhase.ADMITTED)
