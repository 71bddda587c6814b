"""Replicas that die under a request: the caller sees one undisturbed answer."""

import pytest
import ray

from cluster.client import generate_request
from tests.cluster.conftest import Service, tokens

PROMPT = "class Parser:\n    def __init__(self):\n" * 8
OPTIONS = {"temperature": 1.0, "seed": 11, "max_tokens": 150, "ignore_eos": True}


@pytest.mark.parametrize("pool", ["Prefill", "Decode-default"])
def test_a_stream_survives_the_death_of_every_replica_of_a_pool(shipped: Service, pool: str) -> None:
    """All of them, so that the one that serves the request is among them; Serve starts others."""
    undisturbed = tokens(shipped.ask(PROMPT, **OPTIONS))
    agents = {replica.agent for replica in shipped.client.stats().replicas}

    call = shipped.client.generate(generate_request(PROMPT, **OPTIONS), timeout=120)
    replies = [next(call) for _ in range(5)]
    for actor in shipped.replica_actors(pool):
        ray.kill(actor)
    replies += list(call)

    assert tokens(replies) == undisturbed
    assert replies[-1].timings.prefills == (1 if pool == "Prefill" else 2)
    again = tokens(shipped.ask(PROMPT, **OPTIONS))
    assert again == undisturbed, "restarted replicas serve, under new names"
    shipped.wait_for_replicas(4)
    stats = shipped.assert_idle_and_consistent()
    assert len({replica.agent for replica in stats.replicas} - agents) == 2
