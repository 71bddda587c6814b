"""The gateway over scripted pools: what a caller sees when replicas are lost, and what the gateway frees."""

import asyncio
import time
from dataclasses import replace

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import RequestCancelledError

from cluster.serving.gateway import Gateway
from engine.config import GatewayConfig
from engine.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    HandoffLost,
    Preempted,
    Unavailable,
)
from engine.stats import GatewayCounters
from engine.types import FinishReason, Request, RequestEnded, Sampling, StopRules
from policy.journey import RETRY_SECONDS
from policy.request_state import RequestState
from tests.cluster.doubles import Anywhere, Script, ScriptedPools, chunk, handoff

STOP = FinishReason.STOP
REQUEST = Request(id="r", prompt=(5, 6), sampling=Sampling(), stop=StopRules(max_tokens=9))
LOST = RequestEnded(request_id="any", error=HandoffLost("gone"))


def run(pools: ScriptedPools, request: Request = REQUEST, **config: float) -> tuple[list[int], Gateway]:
    """Return the tokens that a caller gets for `request`."""
    gateway = Gateway(pools, Anywhere(), GatewayConfig(**config))
    return travel(gateway, RequestState(request, arrived_at=time.monotonic(), pool="default")), gateway


def travel(gateway: Gateway, state: RequestState) -> list[int]:
    """Return the tokens that a caller gets, and check that no stream is left open."""

    async def collect() -> list[int]:
        tokens = [token async for chunk in gateway.generate(state) for token in chunk.tokens]
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1
        return tokens

    return asyncio.run(collect())


def test_a_request_goes_through_both_pools_once() -> None:
    pools = ScriptedPools([[chunk(1), chunk(2), chunk(3, finish=STOP)]])

    tokens, gateway = run(pools)

    assert tokens == [1, 2, 3]
    assert [request.id for request in pools.requests] == ["r.1"]
    assert all(stream.cancelled for stream in pools.streams)
    assert pools.cancelled == []
    assert gateway.counters.ongoing == 0


@pytest.mark.parametrize("loss", [LOST, ActorDiedError(), RequestEnded(request_id="any", error=EngineFailure("bug"))])
def test_a_request_that_is_lost_goes_on_from_what_the_caller_has(loss: RequestEnded | Exception) -> None:
    pools = ScriptedPools([[chunk(1), chunk(2), loss], [loss], [chunk(3), chunk(4, finish=STOP)]])

    tokens, gateway = run(pools)

    assert tokens == [1, 2, 3, 4]
    assert [request.generated for request in pools.requests] == [(), (1, 2), (1, 2)]
    assert len({request.id for request in pools.requests}) == 3
    assert pools.cancelled == ["r.1", "r.2"]
    assert gateway.counters.prefills_repeated == 2


@pytest.mark.parametrize("loss", [ActorDiedError(), RequestEnded(request_id="any")])
def test_a_lost_prefill_replica_is_another_attempt(loss: RequestEnded | Exception) -> None:
    """A prefill stream that ends without an event is a lost replica too."""
    pools = ScriptedPools([[], [chunk(1, finish=STOP)]], prefills={0: [loss]})

    tokens, _ = run(pools)

    assert tokens == [1]


def test_a_decode_stream_that_just_ends_is_another_attempt() -> None:
    tokens, _ = run(ScriptedPools([[chunk(1)], [chunk(2, finish=STOP)]]))

    assert tokens == [1, 2]


def test_the_wait_before_an_attempt_grows_with_each_loss() -> None:
    """For a moment, Serve still routes to a replica that has just died."""
    began = time.monotonic()

    run(ScriptedPools([[LOST], [LOST], [chunk(1, finish=STOP)]]))

    assert 3 * RETRY_SECONDS <= time.monotonic() - began < 20 * RETRY_SECONDS


def test_the_prefill_stream_is_read_beside_the_decode_stream() -> None:
    """Serve counts it as ongoing as long as it is read, and waits for it before it takes the replica away."""
    pools = ScriptedPools([[0.05, chunk(1, finish=STOP)]])

    run(pools)

    prefill, _decode = pools.streams
    assert prefill.read_to_the_end


def test_a_stream_that_serve_cancels_is_not_tried_again() -> None:
    pools = ScriptedPools([[RequestCancelledError("any")]])

    with pytest.raises(Cancelled):
        run(pools)

    assert len(pools.requests) == 1


def test_losses_beyond_the_retry_budget_are_unavailable() -> None:
    pools = ScriptedPools([[LOST]] * 3)

    with pytest.raises(Unavailable, match=r"3 times \(gateway.retries\); last: gone"):
        run(pools, retries=2)

    assert len(pools.requests) == 3


def test_a_preempted_request_goes_on_however_often_it_happens() -> None:
    gone = RequestEnded(request_id="any", error=Preempted("pages"))
    pools = ScriptedPools([[chunk(1), gone], [chunk(2), gone], [chunk(3), gone], [chunk(4, finish=STOP)]])

    gateway = Gateway(pools, Anywhere(), GatewayConfig(retries=0))
    state = RequestState(REQUEST, arrived_at=time.monotonic(), pool="default")

    assert travel(gateway, state) == [1, 2, 3, 4]
    assert (gateway.counters.preemptions, gateway.counters.prefills_repeated) == (3, 0)
    assert (state.preemptions, state.prefills) == (3, 4)


def test_the_first_token_is_the_one_that_is_timed() -> None:
    pools = ScriptedPools([[0.05, chunk(1), 0.3, LOST], [chunk(2, finish=STOP)]])
    state = RequestState(REQUEST, arrived_at=time.monotonic(), pool="default")

    travel(Gateway(pools, Anywhere(), GatewayConfig()), state)

    assert state.first_token_at is not None
    assert 0.05 < state.first_token_at - state.arrived_at < time.monotonic() - state.arrived_at - 0.3


def test_every_attempt_has_the_age_of_the_request_and_its_seconds_left() -> None:
    pools = ScriptedPools([[chunk(1), 0.05, LOST], [chunk(2, finish=STOP)]])

    run(pools, replace(REQUEST, seconds_left=9.0))

    first, second = pools.requests
    assert 0.05 < second.age_seconds - first.age_seconds < 5
    assert [round(r.age_seconds + r.seconds_left, 2) for r in pools.requests] == [9.0, 9.0]


def test_decode_gets_the_age_of_the_request_at_that_moment() -> None:
    """It once got the age at which prefill had got the request, so a long prompt moved the deadline."""
    one = replace(REQUEST, seconds_left=9.0)
    pools = ScriptedPools([[chunk(1, finish=STOP)]], prefills={0: [0.05, handoff(one)]})

    run(pools, one)

    (before,), (after,) = pools.requests, pools.decoded
    assert 0.05 < after.age_seconds - before.age_seconds < 5
    assert round(after.age_seconds + after.seconds_left, 2) == 9.0
    assert replace(after, age_seconds=before.age_seconds, seconds_left=before.seconds_left) == before


def test_facts_of_the_prompt_come_from_the_first_handoff_and_are_not_asked_for_again() -> None:
    first = replace(handoff(REQUEST), cached_tokens=4, prompt_logprobs=(-1.0,))
    second = replace(handoff(REQUEST), nonce="other", cached_tokens=9)
    pools = ScriptedPools([[chunk(1), LOST], [chunk(2, finish=STOP)]], prefills={0: [first], 1: [second]})
    state = RequestState(replace(REQUEST, prompt_logprobs=True), arrived_at=time.monotonic(), pool="default")

    travel(Gateway(pools, Anywhere(), GatewayConfig()), state)

    assert (state.cached_tokens, state.prompt_logprobs) == (4, (-1.0,))
    assert state.handoff is second
    assert [request.prompt_logprobs for request in pools.requests] == [True, False]


@pytest.mark.parametrize(
    ("script", "error"),
    [([60.0], DeadlineExceeded), ([RequestEnded(request_id="any", error=BadRequest("x", "y"))], BadRequest)],
)
def test_a_request_that_fails_is_counted_once(script: Script, error: type[Exception]) -> None:
    gateway = Gateway(ScriptedPools([script]), Anywhere(), GatewayConfig())

    with pytest.raises(error):
        travel(gateway, RequestState(replace(REQUEST, seconds_left=0.05), arrived_at=time.monotonic(), pool="default"))

    assert gateway.counters == GatewayCounters(requests=1, failed=1)


def test_an_error_of_the_request_is_not_tried_again() -> None:
    pools = ScriptedPools([[RequestEnded(request_id="any", error=BadRequest("max_tokens", "too many"))]])

    with pytest.raises(BadRequest):
        run(pools)

    assert len(pools.requests) == 1
    assert pools.cancelled == ["r.1"]


def test_a_request_that_takes_too_long_ends_and_is_cancelled_everywhere() -> None:
    pools = ScriptedPools([[chunk(1), 60.0]])

    with pytest.raises(DeadlineExceeded, match=r"0\.05 s .*gateway\.request_seconds"):
        run(pools, replace(REQUEST, seconds_left=0.05))

    assert pools.cancelled == ["r.1"]
    assert all(stream.cancelled for stream in pools.streams)


@pytest.mark.parametrize(("prefills", "decodes"), [({0: [60.0]}, [[]]), ({}, [[60.0]]), ({}, [[chunk(1), 60.0]])])
def test_a_caller_that_leaves_frees_everything(prefills, decodes) -> None:  # type: ignore[no-untyped-def]
    pools = ScriptedPools(decodes, prefills)
    gateway = Gateway(pools, Anywhere(), GatewayConfig())

    async def leave() -> None:
        async def collect() -> None:
            async for _ in gateway.generate(RequestState(REQUEST, arrived_at=0.0, pool="default")):
                pass

        task = asyncio.create_task(collect())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert pools.cancelled == ["r.1"]
    assert all(stream.cancelled for stream in pools.streams)
    assert (gateway.counters.ongoing, gateway.counters.cancelled) == (0, 1)
