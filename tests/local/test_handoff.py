"""The handoff protocol, with time and the wire in the test's hand: leases, reads, losses and refusals."""

from dataclasses import replace

import pytest

from engine.errors import DoesNotFit, HandoffLost, HandoffRefused, Overloaded
from engine.types import RequestEnded
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request

LEASE, READ, ANSWER = 30.0, 60.0, 10.0  # the defaults of the configuration


def waiting(make_rig: MakeRig, **decode: int) -> Rig:
    """`r` waits in decode, because `first` takes the only place there for a long time."""
    rig = make_rig(decode={"max_requests": 1, **decode})
    rig.add(request("first", max_tokens=400))
    rig.until(lambda: rig.decoding("first"))
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "waiting"})
    return rig


def ended(rig: Rig, name: str) -> list[RequestEnded]:
    return [event for event in rig.events if isinstance(event, RequestEnded) and event.request_id == name]


def test_renewals_keep_a_handoff_alive_far_beyond_its_term(make_rig: MakeRig) -> None:
    rig = waiting(make_rig)

    rig.wait(5 * LEASE)

    assert rig.phases() == {"r": "waiting"}
    rig.run()
    assert len(rig.tokens("r")) == 5
    assert rig.prefiller.stats().leases.expired == rig.decoder.stats().transfers.reads_lost == 0


def test_a_lease_without_renewals_expires_and_the_request_is_lost_on_both_sides(make_rig: MakeRig) -> None:
    rig = waiting(make_rig)
    rig.wire.cut(rig.decoder.stats().identity.agent)  # decode can ask, but no answer reaches it
    rig.decoder._inbox._notify = lambda *_: False  # and then it cannot even ask

    rig.wait(LEASE + 2)

    assert rig.prefiller.stats().leases.expired == 1
    assert rig.phases() == {}
    assert [type(event.error) for event in ended(rig, "r")] == [HandoffLost, HandoffLost]
    rig.cancel("first")
    rig.run()


def test_a_waiting_handoff_without_lease_is_lost_at_the_next_renewal(make_rig: MakeRig) -> None:
    rig = waiting(make_rig)
    rig.prefiller.cancel("r")

    rig.wait(LEASE / 3 + 2)

    assert rig.phases() == {}
    assert [*rig.lost()] == ["r"]


def test_a_read_without_lease_drains(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    rig.prefiller.cancel("r")

    rig.wait(LEASE / 3 + 2)

    assert rig.phases() == {"r": "draining"}
    assert [*rig.lost()] == ["r"]
    rig.wire.stalled = False
    rig.run()


def test_a_read_that_takes_too_long_is_lost_and_its_pages_wait_for_it(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})

    rig.wait(READ + 1)

    assert isinstance(rig.errors["r"], HandoffLost)
    assert rig.phases() == {"r": "draining"}
    assert rig.leases == 0, "the lease was let go"
    assert rig.decoder.stats().pages["full"].quarantined > 0
    rig.wire.stalled = False
    rig.run()


def test_a_slow_read_keeps_its_lease(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})

    rig.wait(READ - 1)
    rig.wire.stalled = False
    rig.run()

    assert len(rig.tokens("r")) == 5
    assert not rig.errors


def test_a_release_that_is_not_answered_loses_the_handoff(rig: Rig) -> None:
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "releasing"})
    rig.prefiller.step = list  # the prefill engine hangs

    rig.wait(ANSWER + 1)

    assert rig.phases() == {}
    assert isinstance(rig.errors["r"], HandoffLost)
    rig.decoder.assert_consistent()
    del rig.prefiller.step
    rig.run()
    assert rig.leases == 0


def test_an_answer_that_comes_too_late_changes_nothing(rig: Rig) -> None:
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "releasing"})
    rig.clock.advance(ANSWER + 1)

    rig.decoder.step()
    rig.run()

    assert len(rig.tokens("r")) == 1
    assert not rig.decoding("r")


@pytest.mark.parametrize("phase", ["reading", "releasing"])
def test_a_dead_prefill_replica_loses_its_requests_and_leaks_no_page(make_rig: MakeRig, phase: str) -> None:
    rig = make_rig(prefill={"max_requests": 4})
    rig.wire.stalled = phase == "reading"
    for name in ("a", "b"):
        rig.add(request(name))
    rig.until(lambda: rig.phases() == {"a": phase, "b": phase})

    rig.cut_prefill()
    rig.wire.stalled = False
    rig.prefiller.step = list
    rig.wait(ANSWER + 1)

    assert sorted(rig.lost()) == ["a", "b"]
    assert rig.phases() == {}
    rig.decoder.assert_consistent()
    assert rig.decoder.stats().transfers.reads_lost == rig.decoder.stats().counters.failed == 2


def test_a_peer_whose_read_failed_is_forgotten_once_no_other_read_from_it_runs(rig: Rig) -> None:
    """Dropping it deregisters its memory, from which another read may still run."""
    rig.wire.stalled = True
    for name in ("a", "b"):
        rig.add(request(name))
    rig.until(lambda: rig.phases() == {"a": "reading", "b": "reading"})
    dropped: list[tuple[str, list[str]]] = []
    rig.decoder._transfer.drop = lambda peer: dropped.append((peer, [*rig.phases().values()]))
    rig.cut_prefill()
    rig.wire.stalled = False

    rig.step()

    assert dropped == [(rig.prefiller.stats().identity.agent, ["lost"])]


def test_a_release_to_a_dead_prefill_replica_fails_at_once(rig: Rig) -> None:
    """The read ended, but the release cannot be sent: the handoff does not wait for an answer."""
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    rig.decoder._transfer.notify = lambda *_: False
    rig.wire.stalled = False

    rig.step()

    assert rig.phases() == {}
    assert [*rig.lost()] == ["r"]
    rig.decoder.assert_consistent()


def test_another_model_is_refused_with_the_difference(rig: Rig) -> None:
    rig.add(request("r"))
    (handoff,) = rig.prefiller.step()
    theirs = replace(handoff, target_fingerprint={**handoff.target_fingerprint, "weights": "of another run"})

    with pytest.raises(HandoffRefused) as caught:
        rig.decoder.add(rig.requests["r"].request, theirs)

    assert "weights: prefill has of another run, decode " in str(caught.value)
    assert "config" not in str(caught.value), "what agrees is not named"
    rig.cancel("r")
    rig.run()


@pytest.mark.parametrize("key", ["architecture", "config", "weights", "dtype", "layout"])
def test_every_part_of_the_fingerprint_is_compared(rig: Rig, key: str) -> None:
    rig.add(request("r"))
    (handoff,) = rig.prefiller.step()
    theirs = {name: value for name, value in handoff.target_fingerprint.items() if name != key}

    with pytest.raises(HandoffRefused, match=f"{key}: prefill has None"):
        rig.decoder.add(rig.requests["r"].request, replace(handoff, target_fingerprint=theirs))


def test_a_prompt_that_can_never_fit_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"cache_bytes": 600_000})

    with pytest.raises(DoesNotFit, match=r"prompt: 900 tokens needs 15 pages of group full; .*prefill.cache_bytes"):
        rig.add(request("r", tokens=900))

    rig.run()


def test_an_output_that_can_never_fit_ends_its_request_alone(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"cache_bytes": 600_000})
    rig.add(request("large", max_tokens=900))
    rig.add(request("small"))

    rig.run()

    assert isinstance(rig.errors["large"], DoesNotFit)
    assert "max_tokens: 910 tokens in all" in str(rig.errors["large"])
    assert len(rig.tokens("small")) == 5


def test_a_full_prefill_queue_gives_retry_seconds(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"max_waiting": 2})
    for name in ("a", "b"):
        rig.add(request(name))

    with pytest.raises(Overloaded, match=r"prefill\.max_waiting: 2 prompts wait already; retry in 1\.0 s"):
        rig.add(request("c"))

    rig.run()
    assert len(rig.tokens("a")) == len(rig.tokens("b")) == 5


def test_a_full_queue_in_decode_ends_the_request_that_came_last(make_rig: MakeRig) -> None:
    rig = waiting(make_rig, max_waiting=1)

    rig.add(request("late"))
    rig.step()

    assert isinstance(rig.errors["late"], Overloaded)
    assert rig.phases() == {"r": "waiting"}
    rig.run()
    assert len(rig.tokens("r")) == 5


def test_at_most_max_requests_decode_at_once(make_rig: MakeRig) -> None:
    """A request that is admitted in a step counts in that very step."""
    rig = make_rig(decode={"max_requests": 2})
    for i in range(7):
        rig.add(request(f"r{i}", max_tokens=20 + i % 3))
    most = 0

    while not rig.idle:
        rig.step()
        most = max(most, rig.decoder.stats().running)

    assert most == 2
    assert not rig.errors


def test_a_decode_pool_too_small_for_all_serves_all_in_order(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"cache_bytes": 600_000})
    names = [f"r{i}" for i in range(12)]
    for name in names:
        rig.add(request(name, tokens=100, max_tokens=30 if name == "r3" else 20))

    rig.until(lambda: any("waiting" in phase for phase in rig.phases().values()))
    rig.run()

    assert [len(rig.tokens(name)) for name in names] == [30 if name == "r3" else 20 for name in names]
    assert rig.decoder._accounts._running == {}
    second = [event.request_id for event in rig.events if not isinstance(event, RequestEnded) and is_second(rig, event)]
    assert second == names, "what came first was decoded first"
    assert rig.decoder.stats().counters.failed == 0


def test_a_large_request_that_waits_for_pages_is_not_overtaken(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"cache_bytes": 900_000})
    total = rig.decoder.stats().pages["full"].total
    rig.add(request("first", tokens=60, max_tokens=100))
    rig.until(lambda: rig.decoding("first"))
    rig.add(request("large", tokens=64 * (total - 1), max_tokens=5))
    rig.until(lambda: rig.phases() == {"large": "waiting"})
    rig.add(request("small"))

    rig.until(lambda: "small" in rig.phases())
    rig.step()

    assert rig.phases() == {"large": "waiting", "small": "waiting"}
    rig.cancel("large")
    rig.run()
    assert len(rig.tokens("small")) == 5


def is_second(rig: Rig, event: object) -> bool:
    """The chunk with which decoding itself began: the first token came from prefill."""
    chunks = rig.chunks[getattr(event, "request_id", "")]
    return len(chunks) > 1 and event is chunks[1]


def test_the_timings_of_a_request_add_up(rig: Rig) -> None:
    rig.wire.stalled = True
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "reading"})
    rig.wait(3.0)
    rig.wire.stalled = False
    rig.run()

    timings = rig.chunks["r"][-1].timings
    assert timings is not None
    assert timings.transfer_seconds == pytest.approx(3.0, abs=0.1)
    assert timings.moved_pages == 2
    assert timings.moved_bytes == sum(group.target_bytes for group in rig.builder.layout.groups.values())
    assert rig.decoder.stats().transfers.moved_bytes == timings.moved_bytes
