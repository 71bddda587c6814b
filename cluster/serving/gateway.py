"""The gateway performs what policy/journey.py decides for a request. It knows nothing of gRPC, HTTP or Ray.

    request -> prefill stream: Handoff ................................ open until the pages are released
                    |-> decode stream: Chunk, Chunk, ... Chunk(finish)  -> caller

or, where that costs less (policy/route.py: rank_local), one stream from a decode replica: Handoff, Chunk, Chunk, ...
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from engine.config import GatewayConfig
from engine.errors import Overloaded, Preempted, SparkpoolError
from engine.stats import GatewayCounters
from engine.types import Chunk, Event, Handoff, Request, RequestEnded
from policy.admit import RetryBudget
from policy.journey import (
    Action,
    Begin,
    CallerLeft,
    CancelAttempt,
    ChooseReplicas,
    DeadlinePassed,
    Decode,
    Deliver,
    Fail,
    Finish,
    JourneyEvent,
    Prefill,
    RetryPolicy,
    Routed,
    Serve,
    Wait,
    Waited,
    advance,
)
from policy.load import FrontLoad, RecentAnswers
from policy.request_state import RequestState

logger = logging.getLogger("ray.serve")


class EventStream(Protocol):
    """A replica's answer: Serve's response generator, or a double. It fails with SparkpoolErrors only."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def cancel(self) -> object: ...


class ReplicaPools(Protocol):
    """The replicas, as far as a request needs them. A call goes to the first preferred replica that can take it."""

    def prefill(self, request: Request, preferred_replicas: Sequence[str]) -> EventStream: ...
    def decode(
        self, pool: str, request: Request, handoff: Handoff, preferred_replicas: Sequence[str]
    ) -> EventStream: ...
    def serve(self, pool: str, request: Request, preferred_replicas: Sequence[str]) -> EventStream:
        """Prefill and decode in one replica of a decode pool: its handoff, then its chunks."""
        ...

    def cancel(self, request_id: str) -> None:
        """Tell every replica to drop a request; return at once."""
        ...


class Router(Protocol):
    """Decides whether requests are admitted and where they go; policy/board.py explains each method."""

    async def refresh(self) -> None: ...
    def admit(self, request: Request) -> None: ...
    def pool(self, request: Request, wished: str = "") -> str: ...
    def local(self, pool: str, request: Request) -> Sequence[str]: ...
    def prefilling(self, request: Request) -> AbstractContextManager[Sequence[str]]: ...
    def decoding(self, pool: str, request: Request) -> AbstractContextManager[Sequence[str]]: ...
    def serving(self, preferred_replicas: Sequence[str], request: Request) -> AbstractContextManager[None]: ...
    def handed_over(self, seconds: float) -> None: ...


class Gateway:
    """Carries requests through both pools."""

    def __init__(self, pools: ReplicaPools, router: Router, config: GatewayConfig) -> None:
        self._pools = pools
        self._router = router
        self._retries = RetryPolicy(config.retries, RetryBudget(config.max_ongoing))
        self._recent = RecentAnswers()
        self.counters = GatewayCounters()

    def load(self, ttft_percentile: float) -> FrontLoad:
        """Return what the answers of the last seconds were like."""
        return self._recent.load(ttft_percentile)

    async def generate(self, state: RequestState) -> AsyncGenerator[Chunk]:
        """Yield the request's chunks, each token once. Raise a SparkpoolError if it cannot be finished."""
        self.counters.requests += 1
        self.counters.ongoing += 1
        try:
            await self._router.refresh()
            state.pool = self._router.pool(state.request, state.pool)
            if state.index == 0:  # the other answers to a prompt are admitted with the first
                self._router.admit(state.attempt(time.monotonic()))
            async with contextlib.aclosing(self._drive(state)) as chunks:
                async for chunk in chunks:
                    yield chunk
            self._recent.add(state)
            if state.handoff_seconds is not None:
                self._router.handed_over(state.handoff_seconds)
        except Overloaded:
            self.counters.refused += 1
            raise
        except SparkpoolError:
            self.counters.failed += 1
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.counters.cancelled += 1
            raise
        finally:
            self.counters.ongoing -= 1

    async def _drive(self, state: RequestState) -> AsyncGenerator[Chunk]:
        """Perform the request's actions and feed its events, until it has ended or the caller leaves."""
        seconds_left = state.deadline - time.monotonic()
        deadline = asyncio.get_running_loop().time() + seconds_left
        attempt = Attempt(state, self._pools, self._router)
        event: JourneyEvent = Begin()
        try:
            while True:
                for action in advance(state, event, time.monotonic(), self._retries):
                    if isinstance(action, Deliver):
                        yield action.chunk
                    else:
                        self._count(state, action)
                        attempt.perform(action)
                if state.ended:
                    return
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await attempt.next_event()
                except TimeoutError:
                    event = DeadlinePassed()
        finally:
            if not state.ended:
                for action in advance(state, CallerLeft(), time.monotonic()):
                    attempt.perform(action)
            attempt.close()

    def _count(self, state: RequestState, action: Action) -> None:
        match action:
            case Wait(error=Preempted()):
                self.counters.preemptions += 1
            case Wait(error=error):
                self.counters.prefills_repeated += 1
                logger.warning(f"{state.request.id} is prefilled again: {error}")


class Attempt:
    """The open streams of a request's current attempt, and where its next event comes from."""

    def __init__(self, state: RequestState, pools: ReplicaPools, router: Router) -> None:
        self._state = state
        self._pools = pools
        self._router = router
        self._streams = contextlib.ExitStack()
        self._counted = contextlib.ExitStack()  # where the router counts the request
        self._events: AsyncIterator[Event]
        self.next_event: Callable[[], Awaitable[JourneyEvent]]

    def perform(self, action: Action) -> None:
        """Perform any action but Deliver. Nothing here waits. Fail raises."""
        pool = self._state.pool
        match action:
            case ChooseReplicas(request):
                self.next_event = partial(self._routed, request)
            case Wait(seconds):
                self.next_event = partial(_waited, seconds)
            case Prefill(request):
                replicas = self._counted.enter_context(self._router.prefilling(request))
                self._open(self._pools.prefill(request, replicas))
            case Serve(request, replicas):
                self._counted.enter_context(self._router.serving(replicas, request))
                self._open(self._pools.serve(pool, request, replicas))
            case Decode(request, handoff):
                self._counted.close()
                self._streams.callback(asyncio.create_task(_drain(self._events)).cancel)
                replicas = self._counted.enter_context(self._router.decoding(pool, request))
                self._open(self._pools.decode(pool, request, handoff, replicas))
            case CancelAttempt(request_id):
                self.close()
                self._pools.cancel(request_id)
            case Finish():
                self.close()
            case Fail(error):
                raise error

    def close(self) -> None:
        """Cancel the streams, whether they have ended or not."""
        self._streams.close()
        self._counted.close()

    async def _routed(self, request: Request) -> Routed:
        await self._router.refresh()
        return Routed(tuple(self._router.local(self._state.pool, request)))

    def _open(self, stream: EventStream) -> None:
        """Read the next events from `stream`."""
        self._streams.callback(stream.cancel)
        self._events = aiter(stream)
        self.next_event = self._read

    async def _read(self) -> Event:
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            return RequestEnded(request_id=self._state.attempt_id)
        except SparkpoolError as error:
            return RequestEnded(request_id=self._state.attempt_id, error=error)


async def _waited(seconds: float) -> Waited:
    await asyncio.sleep(seconds)
    return Waited()


async def _drain(prefill: AsyncIterator[Event]) -> None:
    """Read the prefill stream to its end beside the decode stream: Serve counts it as ongoing meanwhile.

    How it ends changes nothing. If the pages were lost before they had been read, the decode replica says so.
    """
    try:
        async for event in prefill:
            if isinstance(event, RequestEnded) and event.error is not None:
                raise event.error
    except SparkpoolError as error:
        logger.info(f"a prefill stream ended early: {error}")
