"""The gateway and the board: who is let in, where each leg goes, and what is told of it."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import pytest

from cluster.serving.gateway import Gateway
from engine.config import GatewayConfig
from engine.errors import Overloaded, Unavailable
from engine.stats import GatewayCounters
from engine.types import Request
from policy.load import FrontLoad
from policy.request_state import RequestState
from tests.cluster.doubles import Anywhere, ScriptedPools, chunk
from tests.cluster.test_gateway import LOST, REQUEST, STOP, travel


class FullHouse(Anywhere):
    """A router that admits no request."""

    def admit(self, request: Request) -> None:
        raise Overloaded("too much waits", retry_seconds=1.5)


def test_a_request_that_is_not_let_in_does_nothing_at_all() -> None:
    pools = ScriptedPools([[chunk(1, finish=STOP)]])
    gateway = Gateway(pools, FullHouse(), GatewayConfig())

    with pytest.raises(Overloaded, match=r"retry in 1\.5 s"):
        travel(gateway, RequestState(REQUEST, arrived_at=time.monotonic(), pool="default"))

    assert pools.requests == []
    assert gateway.counters == GatewayCounters(requests=1, refused=1)


def test_attempts_more_end_when_all_that_was_tried_is_lost() -> None:
    """Three requests, three attempts more in all: the first has one, the second has two, the third has none."""
    lost = ScriptedPools([[LOST]] * 20)
    gateway = Gateway(lost, Anywhere(), GatewayConfig(max_ongoing=3, retries=2))

    for _ in range(3):
        with pytest.raises(Unavailable):
            travel(gateway, RequestState(REQUEST, arrived_at=time.monotonic(), pool="default"))

    assert len(lost.requests) == 3 + 3
    with pytest.raises(Unavailable, match=r"too many requests were lost .*gateway\.max_ongoing"):
        travel(gateway, RequestState(REQUEST, arrived_at=time.monotonic(), pool="default"))


def test_each_leg_goes_where_the_board_says() -> None:
    class Somewhere(Anywhere):
        @contextlib.contextmanager
        def prefilling(self, request: Request) -> Iterator[Sequence[str]]:
            yield "p2", "p1"

        @contextlib.contextmanager
        def decoding(self, pool: str, request: Request) -> Iterator[Sequence[str]]:
            yield f"{pool}-d1", "d2"

    pools = ScriptedPools([[chunk(1), LOST], [chunk(2, finish=STOP)]])

    travel(Gateway(pools, Somewhere(), GatewayConfig()), RequestState(REQUEST, arrived_at=time.monotonic(), pool=""))

    assert pools.preferred_replicas == [("p2", "p1"), ("default-d1", "d2")] * 2


def test_the_front_tells_what_answers_of_late_were_like() -> None:
    pools = ScriptedPools([[0.05, chunk(1), 0.1, chunk(2, 3), chunk(4, finish=STOP)]])
    gateway = Gateway(pools, Anywhere(), GatewayConfig())
    assert gateway.load(95.0) == FrontLoad()

    travel(gateway, RequestState(REQUEST, arrived_at=time.monotonic(), pool=""))

    found = gateway.load(95.0)
    assert found.ttft_seconds is not None and 0.05 <= found.ttft_seconds < 0.5
    assert found.user_rate is not None and 3 < found.user_rate <= 3 / 0.1


class Local(Anywhere):
    """A router whose first attempt stays in one decode replica."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._asked = 0

    def local(self, pool: str, request: Request) -> Sequence[str]:
        self._asked += 1
        return ("d1",) if self._asked == 1 else ()

    def handed_over(self, seconds: float) -> None:
        self.seconds.append(seconds)


def test_a_request_may_be_prefilled_where_it_is_decoded() -> None:
    pools, router = ScriptedPools([[chunk(1), chunk(2, finish=STOP)]]), Local()
    state = RequestState(REQUEST, arrived_at=time.monotonic(), pool="")

    assert travel(Gateway(pools, router, GatewayConfig()), state) == [1, 2]

    assert (pools.preferred_replicas, len(pools.streams), pools.decoded) == ([("d1",)], 1, [])
    assert state.handoff is not None and pools.streams[0].cancelled
    assert router.seconds == [], "nothing was handed over"


def test_what_is_lost_there_goes_on_through_both_pools() -> None:
    pools, router = ScriptedPools([[chunk(1), LOST], [0.02, chunk(2), chunk(3, finish=STOP)]]), Local()

    tokens = travel(
        Gateway(pools, router, GatewayConfig()), RequestState(REQUEST, arrived_at=time.monotonic(), pool="")
    )

    assert tokens == [1, 2, 3]
    assert len(pools.decoded) == 1
    assert pools.cancelled == ["r.1"]


def test_what_a_handoff_took_is_told_to_the_board() -> None:
    """From the end of prefill to the first token, and what decode waited and read; here 20 ms and nothing."""
    pools, router = ScriptedPools([[0.02, chunk(1), 0.1, chunk(2, finish=STOP)]]), Local()
    router.local("", REQUEST)

    travel(Gateway(pools, router, GatewayConfig()), RequestState(REQUEST, arrived_at=time.monotonic(), pool=""))

    (seconds,) = router.seconds
    assert 0.02 <= seconds < 0.1
