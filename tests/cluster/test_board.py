"""The board: the last statistics of replicas, corrected by what was sent since. And the router that uses it."""

import asyncio
from collections.abc import Callable

import pytest

from cluster.serving.board import FRESH_SECONDS, OLD_SECONDS, LiveBoard
from cluster.serving.router import ranked
from engine.config import Config
from engine.errors import BadRequest, Overloaded, Unavailable
from engine.stats import ReplicaStats
from engine.types import Request, Sampling, StopRules
from tests.policy.replicas import replica

PACE = {"tokens_per_second": 100.0, "pool": "prefill"}


def request(num_tokens: int = 100, first: int = 0, **more: object) -> Request:
    prompt = tuple(range(first, first + num_tokens))
    return Request(id="r", prompt=prompt, sampling=Sampling(), stop=StopRules(max_tokens=9), **more)  # type: ignore[arg-type]


class Room:
    """A board, the replicas that it asks, and its clock."""

    def __init__(self, *replicas: ReplicaStats, **gateway: object) -> None:
        self.now = 0.0
        self.asked = 0
        self.answer: Callable[[], list[ReplicaStats]] = lambda: [*replicas]
        content = {"gateway": gateway, "model": {"page_tokens": 16}, "decode": {"gpu": {}, "lpu": {}}}
        self.board = LiveBoard(Config.parse(content), self.ask, lambda: self.now)

    async def ask(self) -> list[ReplicaStats]:
        self.asked += 1
        return self.answer()

    async def later(self, seconds: float) -> None:
        self.now += seconds
        await self.board.refresh()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def decoder(name: str, pool: str = "gpu", **changes: object) -> ReplicaStats:
    return replica(name, role="decode", pool=pool, request_rates={1: 100.0, 8: 30.0}, **changes)  # type: ignore[arg-type]


def test_requests_spread_over_replicas_before_new_statistics_arrive() -> None:
    async def scenario() -> None:
        room = Room(replica("a", **PACE), replica("b", **PACE), decoder("d"), decoder("e"))
        await room.later(0.0)
        with room.board.prefilling(request()) as first, room.board.prefilling(request(first=900)) as second:
            assert {first[0], second[0]} == {"a", "b"}
        with room.board.decoding("gpu", request()) as first, room.board.decoding("gpu", request()) as second:
            assert {first[0], second[0]} == {"d", "e"}

    asyncio.run(scenario())


def test_a_sent_request_counts_once_when_statistics_include_it_too() -> None:
    async def scenario() -> None:
        room = Room(replica("a", **PACE), max_queued_seconds=1.5)
        await room.later(0.0)
        with room.board.prefilling(request(100)):
            room.board.admit(request(10, first=500))  # 1 s of work waits
            room.answer = lambda: [replica("a", queued_tokens={0: 100}, **PACE)]
            await room.later(FRESH_SECONDS * 2)
            room.board.admit(request(10, first=500))  # still 1 s, and not 2
            with room.board.prefilling(request(100, first=700)), pytest.raises(Overloaded, match=r"2\.0 s of prompts"):
                room.board.admit(request(10, first=500))
        room.board.admit(request(10, first=500))

    asyncio.run(scenario())


def test_a_prompt_goes_to_the_replica_with_its_prefix_until_that_replica_is_gone() -> None:
    async def scenario() -> None:
        room = Room(replica("a", tokens=5, **PACE), replica("b", **PACE))
        await room.later(0.0)
        with room.board.prefilling(request(160)) as preferred_replicas:
            assert preferred_replicas == ("b", "a")
        room.answer = lambda: [replica("a", **PACE), replica("b", tokens=900, queued_tokens={0: 100}, **PACE)]
        await room.later(1.0)
        with room.board.prefilling(request(200)) as preferred_replicas:
            assert preferred_replicas == ("b", "a"), "160 tokens are there, 100 wait before it"
        room.answer = lambda: [replica("a", **PACE), replica("c", **PACE)]
        await room.later(1.0)
        with room.board.prefilling(request(200)) as preferred_replicas:
            assert "b" not in preferred_replicas

    asyncio.run(scenario())


def test_pages_of_requests_on_their_way_do_not_count_as_free() -> None:
    async def scenario() -> None:
        room = Room(decoder("d", free=10, total=10), decoder("e", free=6, total=6, running=3))
        await room.later(0.0)
        with room.board.decoding("gpu", request(100)) as preferred_replicas:
            assert preferred_replicas[0] == "d"
            with room.board.decoding("gpu", request(80)) as preferred_replicas:
                assert preferred_replicas[0] == "e", "3 pages are left of d's 10, and 5 are needed"

    asyncio.run(scenario())


def test_replicas_are_asked_for_statistics_only_when_the_last_are_old() -> None:
    async def scenario() -> None:
        room = Room(replica("a", **PACE))
        for seconds, asked in ((0.0, 1), (FRESH_SECONDS / 2, 1), (FRESH_SECONDS, 2), (OLD_SECONDS + 1, 3)):
            await room.later(seconds)
            assert room.asked == asked

    asyncio.run(scenario())


def test_the_last_statistics_stay_when_replicas_do_not_answer() -> None:
    def lost() -> list[ReplicaStats]:
        raise Unavailable("a replica was lost while it was asked")

    async def scenario() -> None:
        room = Room(replica("a", **PACE))
        await room.later(0.0)
        room.answer = lost
        await room.later(OLD_SECONDS + 1)
        with room.board.prefilling(request()) as preferred_replicas:
            assert preferred_replicas == ("a",)

    asyncio.run(scenario())


def test_a_board_without_statistics_admits_every_request_and_prefers_no_replica() -> None:
    board = Room().board
    board.admit(request(seconds_left=0.001))
    with board.prefilling(request()) as preferred_replicas:
        assert preferred_replicas == ()
    assert board.pool(request()) == "gpu"


def test_pools_by_name_and_by_policy() -> None:
    async def scenario() -> None:
        replicas = decoder("d", running=7), decoder("e", pool="lpu")
        for policy, pool in (("first", "gpu"), ("fastest", "lpu"), ("spill", "gpu")):
            room = Room(*replicas, pool_policy=policy)
            await room.later(0.0)
            assert room.board.pool(request()) == pool
            assert room.board.pool(request(), "lpu") == "lpu"
        with pytest.raises(BadRequest, match="decode_pool: unknown pool 'tpu'; the pools are: gpu, lpu"):
            room.board.pool(request(), "tpu")

    asyncio.run(scenario())


def test_preferred_replicas_come_first_and_lost_ones_are_skipped() -> None:
    replicas = {name: name.upper() for name in "abc"}

    assert ranked(("c", "x", "a"), replicas) == [["C"], ["A"], ["B"]]
    assert ranked((), replicas) == [["A", "B", "C"]]
    assert ranked(("a", "b", "c", "a"), replicas) == [["A"], ["B"], ["C"]]
    assert ranked(("x",), {}) == []


def test_a_short_prompt_stays_in_decode_where_a_handoff_would_cost_more() -> None:
    def colocated(name: str, **changes: object) -> ReplicaStats:
        return decoder(name, tokens_per_second=1000.0, min_step_seconds=0.001, **changes)

    async def scenario() -> None:
        room = Room(replica("p", **{**PACE, "tokens_per_second": 10_000.0}), colocated("d", running=1), colocated("e"))
        await room.later(0.0)
        assert room.board.local("gpu", request(20)) == (), "nobody knows yet what a handoff costs"
        room.board.handed_over(0.03)
        assert room.board.local("gpu", request(20)) == ("e", "d")
        assert room.board.local("gpu", request(200)) == ()
        with room.board.serving(("e",), request(20)):
            assert room.board.local("gpu", request(20, first=500)) == (), "20 tokens are before it now"
        assert room.board.local("gpu", request(33))[0] == "e", "and most of this one is known there"
        assert room.board.local("lpu", request(20)) == ()

    asyncio.run(scenario())
