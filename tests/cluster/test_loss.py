"""Replicas that die during a request: the caller gets the same answer, or UNAVAILABLE after too many losses."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray

from cluster.client import generate_request
from engine.config import SHIPPED_MODEL, Config
from engine.text import Text
from tests.cluster.conftest import Deploy, Service, tokens

PROMPT = "class Parser:\n    def __init__(self):\n" * 8
SEEDED = {"temperature": 1.0, "seed": 11, "max_tokens": 150, "ignore_eos": True}
GREEDY = {"temperature": 0.0, "max_tokens": 150, "ignore_eos": True}


def kill_all(service: Service, deployment: str) -> None:
    """Kill all replicas of a pool, so also the one that serves the request; Serve starts others."""
    for actor in service.replica_actors(deployment):
        ray.kill(actor)


def assert_recovered(service: Service, agents_before: set[str], lost: int) -> None:
    """Check that all replicas are back, killed ones under new names, and that no page is missing."""
    service.wait_for_replicas(4)
    stats = service.assert_idle_and_consistent()
    assert len({replica.identity.agent for replica in stats.replicas} - agents_before) == lost


@pytest.mark.parametrize("options", [SEEDED, GREEDY], ids=["seeded", "greedy"])
def test_decode_replicas_die_in_mid_stream(shipped: Service, options: dict[str, float]) -> None:
    undisturbed = tokens(shipped.ask(PROMPT, **options))
    agents = {replica.identity.agent for replica in shipped.client.stats().replicas}

    call = shipped.client.generate(generate_request(PROMPT, **options), timeout=120)
    replies = [next(call) for _ in range(5)]
    kill_all(shipped, "Decode-default")
    replies += list(call)

    assert tokens(replies) == undisturbed
    assert replies[-1].timings.prefills == 2
    assert tokens(shipped.ask(PROMPT, **options)) == undisturbed, "restarted replicas serve"
    assert_recovered(shipped, agents, lost=2)


def test_prefill_replicas_die_in_mid_prompt(shipped: Service) -> None:
    """The prompt is long and its chunks are small, so that prefill still runs when the replicas are killed."""
    prompt = list((Text.load(SHIPPED_MODEL).encode(PROMPT) * 99)[:3000])
    undisturbed = [tokens(shipped.ask(prompt, cache_salt="before", **options)) for options in (SEEDED, GREEDY)]
    agents = {replica.identity.agent for replica in shipped.wait_for_replicas(4).replicas}

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(shipped.ask, prompt, cache_salt="now", **options) for options in (SEEDED, GREEDY)]
        wait_until(lambda: in_prefill(shipped) == 2)
        kill_all(shipped, "Prefill")
        replies = [call.result() for call in calls]

    assert [tokens(answer) for answer in replies] == undisturbed
    assert [answer[-1].timings.prefills for answer in replies] == [2, 2]
    assert_recovered(shipped, agents, lost=2)


def test_prefill_replicas_die_after_their_pages_were_read(shipped: Service) -> None:
    undisturbed = tokens(shipped.ask(PROMPT, **SEEDED))
    agents = {replica.identity.agent for replica in shipped.wait_for_replicas(4).replicas}

    call = shipped.client.generate(generate_request(PROMPT, **SEEDED), timeout=120)
    replies = [next(call) for _ in range(5)]
    kill_all(shipped, "Prefill")
    replies += list(call)

    assert tokens(replies) == undisturbed
    assert replies[-1].timings.prefills == 1, "nobody needed them any more"
    assert_recovered(shipped, agents, lost=2)


def test_without_retries_a_loss_is_unavailable_and_names_the_key(deploy: Deploy) -> None:
    pools = {"prefill": {"cache_bytes": "16MiB"}, "decode": {"default": {"cache_bytes": "16MiB"}}}
    with deploy("fragile", Config.parse({**pools, "gateway": {"retries": 0}})) as service:
        call = service.client.generate(generate_request(PROMPT, **GREEDY), timeout=120)
        next(call)
        kill_all(service, "Decode-default")

        with pytest.raises(grpc.RpcError) as lost:
            list(call)

        assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "gateway.retries" in lost.value.details()
        service.wait_for_replicas(2)
        service.assert_idle_and_consistent()


def in_prefill(service: Service) -> int:
    """Prompts that are there: the second may wait for the pages of the first, which begins alike."""
    return sum(r.running + r.waiting for r in service.client.stats().replicas if r.identity.role == "prefill")


def wait_until(condition, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
