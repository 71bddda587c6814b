"""A request that a decode replica prefills itself, through Serve: its handoff, its chunks, and what is counted."""

import asyncio

from ray import serve

from cluster.app import decode_deployment
from cluster.pools import ServePools
from engine.types import Chunk, Event, Handoff, Request, Sampling, StopRules
from tests.cluster.conftest import Service, tokens

PROMPT = [7 * i % 500 for i in range(150)]


async def served(service: Service, request: Request) -> list[Event]:
    prefill, decode = (serve.get_deployment_handle(n, service.name) for n in ("Prefill", decode_deployment("default")))
    return [event async for event in ServePools(prefill, {"default": decode}).local("default", request)]


def test_a_decode_replica_answers_without_the_prefill_pool(shipped: Service) -> None:
    expected = tokens(shipped.ask(PROMPT, temperature=0.0, max_tokens=20, ignore_eos=True))
    before = shipped.wait_idle()
    stop = StopRules(max_tokens=20, ignore_eos=True)
    request = Request(id="served", prompt=tuple(PROMPT), sampling=Sampling(), stop=stop)

    handoff, *chunks = asyncio.run(served(shipped, request))

    assert isinstance(handoff, Handoff)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert [token for chunk in chunks for token in chunk.tokens] == expected
    after = shipped.assert_idle_and_consistent()
    counted = {
        name: sum(getattr(r, name) for r in after.replicas) - sum(getattr(r, name) for r in before.replicas)
        for name in ("local_prefills", "reads", "moved_pages")
    }
    assert counted == {"local_prefills": 1, "reads": 0, "moved_pages": 0}
    assert sum(r.tokens for r in after.replicas if r.role == "prefill") == sum(
        r.tokens for r in before.replicas if r.role == "prefill"
    )
