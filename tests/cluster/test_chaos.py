"""Replicas of both pools die under load, with speculation: answers stay the same, and nothing leaks."""

import asyncio
import random
from itertools import count

from bench.storm import Answer, Replicas, ask_all, compare, leaks, questions
from engine.config import SHIPPED_DRAFTER, Config
from tests.cluster.conftest import Deploy

KILLS_AFTER = (15, 40, 65)  # answers


def test_a_hundred_requests_survive_three_kills(deploy: Deploy) -> None:
    engine = {"replicas": 3, "threads": 1, "cache_bytes": "24MiB"}
    config = Config.parse(
        {
            "model": {"drafter": str(SHIPPED_DRAFTER)},
            "prefill": engine,
            "decode": {"default": {**engine, "planner": "fixed"}},
        }
    )
    draw = random.Random(7)
    asked = questions(100, draw, output_tokens=(24, 64))
    with deploy("chaos", config) as service:
        address = f"127.0.0.1:{service.port}"
        before = asyncio.run(ask_all(address, service.name, asked, 32))
        replicas, ended = Replicas(service.name, draw), count(1)

        def on_end(_: Answer) -> None:
            if next(ended) in KILLS_AFTER:
                replicas.kill_one()

        after = asyncio.run(ask_all(address, service.name, asked, 32, on_end))

        verdict = compare(asked, before, after)
        assert verdict.clean, verdict
        assert verdict.ties <= 1
        assert verdict.resumed, "nobody was on the replicas that were killed"
        assert len(replicas.killed) == 3
        service.wait_for_replicas(6)
        assert leaks(service.assert_idle_and_consistent()) == []
