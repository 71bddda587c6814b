"""Whatever ends a request early, both pools free its pages, and the next request is served."""

import random
import time

import grpc
import pytest

from cluster.client import generate_request
from tests.cluster.conftest import WAYS, Service, tokens

LONG = [random.Random(0).randrange(300, 4000) for _ in range(4000)]


def test_a_call_cancelled_in_mid_prompt_frees_its_pages(shipped: Service) -> None:
    call = shipped.client.generate(generate_request(LONG, temperature=0.0, max_tokens=50))
    wait_until(lambda: any(r.running for r in shipped.client.stats().replicas if r.identity.pool == "prefill"))

    call.cancel()

    shipped.assert_idle_and_consistent()
    assert len(tokens(shipped.ask("import os", temperature=0.0, max_tokens=3, ignore_eos=True))) == 3


@pytest.mark.parametrize("replies", [1, 2, 10])
def test_a_call_cancelled_after_some_replies_frees_its_pages(shipped: Service, replies: int) -> None:
    """After one reply the pages may still be under way; after ten the request is decoding."""
    call = shipped.client.generate(generate_request("x = 1\n" * 60, temperature=0.0, max_tokens=2000, ignore_eos=True))
    for _ in range(replies):
        next(call)

    call.cancel()

    shipped.assert_idle_and_consistent()


def test_many_calls_cancelled_at_random_moments_leave_nothing(shipped: Service) -> None:
    draw = random.Random(3)
    calls = []
    for i in range(24):
        prompt = LONG[: draw.choice([1, 64, 500, 1500])]
        calls.append(shipped.client.generate(generate_request(prompt, temperature=1.0, seed=i, max_tokens=300)))
        time.sleep(draw.random() * 0.03)
        if draw.random() < 0.5:
            calls.pop(draw.randrange(len(calls))).cancel()
    time.sleep(0.5)
    for call in calls:
        call.cancel()

    stats = shipped.assert_idle_and_consistent()
    assert sum(replica.counters.cancelled for replica in stats.replicas) > 0


@pytest.mark.parametrize("way", WAYS)
def test_no_cancellation_of_a_stream_gets_lost(shipped: Service, way: str) -> None:
    """Serve and Ray alone lose about one in twenty (cluster/serving/proxy.py): 40 lose one with probability 0.87."""
    request = generate_request("z = 3\n" * 20, temperature=0.0, max_tokens=4000, ignore_eos=True)
    with shipped.client_by(way) as client:
        for i in range(40):
            call = client.generate(request)
            for _ in range(3 + i % 17):
                next(call)
            call.cancel()

    shipped.assert_idle_and_consistent()
    assert shipped.client.stats().gateway.ongoing == 0


def test_a_deadline_ends_the_call_and_frees_its_pages(shipped: Service) -> None:
    request = generate_request("y = 2\n" * 20, temperature=0.0, max_tokens=4000, ignore_eos=True)

    with pytest.raises(grpc.RpcError) as late:
        list(shipped.client.generate(request, timeout=0.7))

    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    shipped.assert_idle_and_consistent()


def wait_until(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
