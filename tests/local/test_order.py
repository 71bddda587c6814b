"""Priority and deadlines, in both pools."""

from dataclasses import replace

import pytest

from engine.errors import DeadlineExceeded
from engine.types import Chunk, Handoff
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request


def test_prefill_orders_by_priority_and_then_by_age(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"max_requests": 1})
    for name, priority, age in [("a", 0, 0.0), ("b", 0, 5.0), ("c", 2, 9.0), ("d", -1, 0.0), ("e", 0, 0.0)]:
        rig.add(replace(request(name, tokens=70), priority=priority, age_seconds=age))
    rig.run()

    assert [event.request_id for event in rig.events if isinstance(event, Handoff)] == ["d", "b", "a", "e", "c"]


def test_an_urgent_prompt_precedes_one_that_has_begun(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add(request("long", tokens=300))
    rig.step()
    rig.add(replace(request("urgent", tokens=120), priority=-1))
    rig.step()
    rig.run()

    assert [event.request_id for event in rig.events if isinstance(event, Handoff)] == ["urgent", "long"]


def test_decode_orders_by_priority(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"max_requests": 1})
    rig.add(request("running", max_tokens=30))
    rig.until(lambda: rig.decoding("running"))
    for name, priority in [("a", 1), ("b", 0), ("c", -3)]:
        rig.add(replace(request(name), priority=priority))
    rig.run()

    ends = [event.request_id for event in rig.events if isinstance(event, Chunk) and event.finish]
    assert ends == ["running", "c", "b", "a"]


@pytest.mark.parametrize("place", ["waiting for prefill", "in its prompt", "waiting for decode", "reading", "decoding"])
def test_a_deadline_ends_a_request_in_every_state(make_rig: MakeRig, place: str) -> None:
    rig = make_rig(prefill={"max_requests": 1}, decode={"max_requests": 1})
    late = replace(request("late", tokens=600 if place == "in its prompt" else 20, max_tokens=400), seconds_left=10.0)
    if place == "waiting for prefill":
        rig.add(request("first", tokens=700))
        rig.step()
    if place == "waiting for decode":
        rig.add(request("first", max_tokens=400))
        rig.until(lambda: rig.decoding("first"))
    rig.wire.stalled = place == "reading"
    rig.add(late)
    reached = {
        "waiting for prefill": lambda: rig.prefiller.stats().waiting == 1,
        "in its prompt": lambda: any(p.computed for p in rig.prefiller._schedule.running),
        "waiting for decode": lambda: rig.phases() == {"late": "waiting"},
        "reading": lambda: rig.phases() == {"late": "reading"},
        "decoding": lambda: rig.decoding("late"),
    }
    rig.until(reached[place])

    rig.clock.advance(11.0)
    rig.step()

    assert isinstance(rig.errors.pop("late"), DeadlineExceeded)
    said = len(rig.tokens("late"))
    rig.wire.stalled = False
    rig.run()
    assert len(rig.tokens("late")) == said, "nothing more is heard of it"
    assert not rig.errors
    assert rig.prefiller.stats().counters.failed + rig.decoder.stats().counters.failed == 1


def test_a_deadline_that_is_met_changes_nothing(rig: Rig) -> None:
    rig.add(replace(request("r"), seconds_left=10.0))
    rig.run()
    rig.wait(20.0)

    assert len(rig.tokens("r")) == 5
    assert not rig.errors
