from dataclasses import replace

import pytest

from engine.errors import BadRequest, DoesNotFit
from engine.stats import PrefillQueue, ReplicaStats
from engine.transfer import LeaseCommand, LeaseMessage
from tests.local.conftest import MakeRig, TakesTime
from tests.local.rig import Rig, request


def test_a_stream_yields_the_chunks_of_its_request_in_order(rig: Rig) -> None:
    other, mine = request("other", max_tokens=9), request("r", max_tokens=4)
    rig.add(other)

    chunks = [*rig.stream(mine)]

    assert [chunk.request_id for chunk in chunks] == ["r"] * 4
    assert [chunk.finish is not None for chunk in chunks] == [False, False, False, True]


def test_a_stream_raises_the_error_that_ended_its_request(make_rig: MakeRig) -> None:
    rig = make_rig(decode={"cache_bytes": 600_000})

    with pytest.raises(DoesNotFit):
        list(rig.stream(request("r", max_tokens=900)))

    rig.run()


def test_a_request_is_checked_before_anything_is_queued(rig: Rig) -> None:
    with pytest.raises(BadRequest):
        rig.add(request("r", tokens=0))

    assert rig.idle
    assert not rig.requests


def test_an_idle_engine_needs_no_step(rig: Rig) -> None:
    assert rig.prefiller.next_deadline() is rig.decoder.next_deadline() is None


def test_an_engine_that_only_waits_does_not_spin(rig: Rig) -> None:
    """With a read under way nothing can be computed: the next step is due one poll later."""
    rig.wire.stalled = True
    rig.add(request("r"))
    assert rig.prefiller.next_deadline() == rig.clock.now()

    rig.until(lambda: rig.phases() == {"r": "reading"})

    poll = rig.builder.config.transfer.poll_seconds
    assert rig.prefiller.next_deadline() == rig.decoder.next_deadline() == rig.clock.now() + poll
    rig.wire.stalled = False
    rig.run()


@pytest.mark.parametrize("verb", LeaseCommand)
@pytest.mark.parametrize("held", [None, True, False])
def test_messages_about_unknown_leases_change_nothing(rig: Rig, verb: LeaseCommand, held: bool | None) -> None:
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "releasing"})
    prefill, decode = rig.prefiller.stats().identity.agent, rig.decoder.stats().identity.agent
    stray = LeaseMessage(command=verb, nonce="unknown", held=held)

    rig.wire.agents[decode].notify(prefill, stray)
    rig.wire.agents[prefill].notify(decode, stray)
    rig.run()

    assert len(rig.tokens("r")) == 5


@pytest.mark.parametrize("verb", LeaseCommand)
def test_a_lease_command_does_not_count_as_an_answer(rig: Rig, verb: LeaseCommand) -> None:
    rig.add(request("r"))
    rig.until(lambda: rig.phases() == {"r": "releasing"})
    (nonce,) = rig.decoder._inbox._incoming
    prefill, decode = rig.prefiller.stats().identity.agent, rig.decoder.stats().identity.agent

    rig.wire.agents[prefill].notify(decode, LeaseMessage(command=verb, nonce=nonce))
    rig.run()

    assert len(rig.tokens("r")) == 5


def test_only_lease_commands_are_answered(rig: Rig) -> None:
    """Two replicas that answer each other's answers would never stop."""
    prefill, decode = rig.prefiller.stats().identity.agent, rig.decoder.stats().identity.agent
    rig.wire.agents[decode].notify(prefill, LeaseMessage(command=LeaseCommand.RENEW, nonce="n", held=True))

    rig.prefiller.step()

    assert rig.wire.agents[decode].notifications() == []


def test_the_counters_of_both_engines_are_exact(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        rig.add(request(name, tokens=20, max_tokens=5))
    rig.until(lambda: rig.decoding("c"))
    rig.cancel("c")
    rig.run()

    prefill, decode = rig.prefiller.stats(), rig.decoder.stats()
    prompts, answers = prefill.counters, decode.counters
    assert (prompts.requests, prompts.tokens, prompts.cancelled, prompts.failed) == (3, 60, 0, 0)
    assert prompts.prompt_tokens == answers.prompt_tokens == 60
    assert (answers.requests, answers.cancelled, answers.failed, decode.transfers.reads) == (3, 1, 0, 3)
    assert answers.tokens == sum(len(rig.tokens(name)) for name in "abc")
    assert decode.waiting == decode.running == prefill.waiting == prefill.running == prefill.leases.held == 0


def test_a_warm_up_leaves_no_pages_and_no_counts(rig: Rig, computing_takes_time: TakesTime) -> None:
    """It leaves no page, no count and no prefix of its dummy prompts; only the speed of prefill is measured."""
    computing_takes_time(rig.clock)

    def statistics() -> list[ReplicaStats]:
        engines = (rig.prefiller, rig.decoder)
        return [replace(e.stats(), peak_bytes=0, prefill_queue=PrefillQueue()) for e in engines]

    before = statistics()

    rig.prefiller.warm_up()
    rig.decoder.warm_up()

    assert statistics() == before
    assert rig.prefiller.stats().prefill_queue.tokens_per_second > 0
    rig.assert_consistent()


def test_prefill_counts_steps_failures_and_cancellations(make_rig: MakeRig) -> None:
    rig = make_rig(prefill={"chunk_tokens": 32})
    rig.add(request("r", tokens=80))
    rig.step()
    rig.cancel("r")
    rig.add(replace(request("late", tokens=80), seconds_left=0.5))
    rig.step()
    rig.clock.advance(1.0)
    rig.step()
    rig.add(request("leased"))
    rig.prefiller.step()
    rig.prefiller.cancel("leased")

    prefill = rig.prefiller.stats()
    assert (prefill.counters.steps, prefill.counters.cancelled, prefill.counters.failed) == (3, 2, 1)
