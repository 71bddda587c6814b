"""Tests the messages, pages and counters of a decode replica while handoffs arrive."""

from dataclasses import replace

import pytest

from engine.stats import Transfers
from engine.transfer import LeaseCommand, LeaseMessage
from engine.types import Chunk
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, prompt, request


def said(rig: Rig) -> list[LeaseCommand]:
    """Fills up with what decode says to prefill from now on."""
    words: list[LeaseCommand] = []
    transfer = rig.decoder._transfer
    notify = transfer.notify

    def heard(peer: str, message: LeaseMessage) -> bool:
        words.append(message.command)
        return notify(peer, message)

    transfer.notify = heard
    return words


@pytest.mark.parametrize("phase", ["waiting", "reading"])
def test_a_lease_is_renewed_three_times_per_term_and_released_once(make_rig: MakeRig, phase: str) -> None:
    rig = make_rig(decode={"max_requests": 1})
    if phase == "waiting":
        rig.add(request("first", max_tokens=100))
        rig.until(lambda: rig.decoding("first"))
    rig.wire.stalled = phase == "reading"
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": phase})
    words = said(rig)

    rig.wait(45.0)

    assert words == [LeaseCommand.RENEW] * 4
    rig.wire.stalled = False
    rig.run()
    assert words == [LeaseCommand.RENEW] * 4 + [LeaseCommand.RELEASE]
    assert len(rig.tokens("r")) == 5


def test_an_urgent_handoff_overtakes_those_that_came_before(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"max_requests": 1})
    rig.add(request("running", max_tokens=40))
    rig.until(lambda: rig.decoding("running"))
    for name, priority in (("a", 1), ("b", 0), ("c", -1)):
        rig.add(replace(request(name), priority=priority))
        rig.until(lambda name=name: rig.phases().get(name) == "waiting")
    rig.run()

    ends = [event.request_id for event in rig.events if isinstance(event, Chunk) and event.finish]
    assert ends == ["running", "c", "b", "a"]


@pytest.mark.parametrize("phase", ["waiting", "reading", "releasing"])
def test_a_peer_is_not_dropped_when_a_request_is_cancelled(make_rig: MakeRig, phase: str) -> None:
    """Other reads from it may be under way."""
    rig = make_rig(decode={"max_requests": 2 if phase != "waiting" else 1})
    rig.add(request("first", max_tokens=100))
    rig.until(lambda: rig.decoding("first"))
    rig.wire.stalled = phase == "reading"
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": phase})
    dropped: list[str] = []
    rig.decoder._transfer.drop = dropped.append

    rig.cancel("r")
    rig.wire.stalled = False
    rig.run()

    assert dropped == []


@pytest.mark.parametrize("phase", ["reading", "releasing"])
def test_a_cancelled_handoff_leaves_the_pages_that_were_cached(rig: Rig, phase: str) -> None:
    asked = [replace(request(name), prompt=prompt("same", 150) + prompt(name, 20)) for name in ("a", "b", "c")]
    rig.generate(asked[:1])
    rig.wire.stalled = phase == "reading"
    rig.add(asked[1])
    rig.until(lambda: rig.phases() == {"b": phase})
    rig.cancel("b")
    rig.wire.stalled = False
    rig.run()
    before = rig.decoder.stats().counters.prefix_hit_tokens

    rig.generate(asked[2:])

    assert rig.decoder.stats().counters.prefix_hit_tokens - before == 128


def test_transferred_bytes_are_counted_when_the_read_has_ended(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r", tokens=100))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    rig.wait(3.0)
    before = rig.decoder.stats().transfers
    rig.wire.stalled = False
    rig.run()

    after = rig.decoder.stats().transfers
    assert before == Transfers(reads=1)
    assert (after.reads, after.moved_pages) == (1, 4), "two pages of each of two groups"
    assert after.moved_bytes == 2 * sum(group.target_bytes for group in rig.builder.layout.groups.values())
    assert after.transfer_seconds == pytest.approx(3.0, abs=0.1)
