"""The gateway owns a request from its arrival to its last token. It knows nothing of gRPC or HTTP.

    request -> prefill stream: Handoff ................................ open until the pages are released
                    |-> decode stream: Chunk, Chunk, ... Chunk(finish)  -> caller

or, where that costs less (policy/route.py: rank_local), one stream from a decode replica: Handoff, Chunk, Chunk, ...

If a replica or a handoff is lost on the way, the same request is prefilled again together with the tokens that the
caller already has, so that nothing is said twice and nothing is missing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from cluster.sliding_window import SlidingWindow
from engine.errors import Cancelled, DeadlineExceeded, EngineFailure, Overloaded, Preempted, SparkpoolError, Unavailable
from engine.front import GatewayConfig
from engine.types import Chunk, Event, Handoff, Request, RequestEnded
from policy.admit import RetryBudget
from policy.load import FrontLoad

logger = logging.getLogger("ray.serve")

RECENT_SECONDS, SLOWEST = 10.0, 5.0  # answers of so many seconds; the slowest are those below this percentile
RETRY_SECONDS = 0.05  # doubled each time: a replica that has just died takes a moment to be routed around
Events = AsyncGenerator[Event]
LOST = (Unavailable, EngineFailure)  # what another attempt may cure


class EventStream(Protocol):
    """A replica's answer: Serve's response generator, or a double."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def cancel(self) -> object: ...


class Pools(Protocol):
    """Both pools, as far as a request needs them."""

    def prefill(self, request: Request, preferred_replicas: Sequence[str]) -> EventStream:
        """`preferred_replicas`: replicas, best first; the first that can takes it."""
        ...

    def decode(
        self, pool: str, request: Request, handoff: Handoff, preferred_replicas: Sequence[str]
    ) -> EventStream: ...
    def serve(self, pool: str, request: Request, preferred_replicas: Sequence[str]) -> EventStream:
        """Prefill and decode in one replica of a decode pool: its handoff, then its chunks."""
        ...

    def cancel(self, request_id: str) -> None:
        """Tell every replica to drop a request; returns at once."""
        ...


class Places(Protocol):
    """Where requests go, and whether they are let in: policy/board.py."""

    async def refresh(self) -> None: ...
    def admit(self, request: Request) -> None: ...
    def pool(self, request: Request, wished: str = "") -> str: ...
    def local(self, pool: str, request: Request) -> Sequence[str]: ...
    def prefilling(self, request: Request) -> AbstractContextManager[Sequence[str]]: ...
    def decoding(self, pool: str, request: Request) -> AbstractContextManager[Sequence[str]]: ...
    def serving(self, preferred_replicas: Sequence[str], request: Request) -> AbstractContextManager[None]: ...
    def handed_over(self, seconds: float) -> None: ...


@dataclass
class Journey:
    """What is known of one request while it is served. Times are seconds on this process's clock. `pool` is the decode
    pool that it names; if it names none, the one that it gets."""

    request: Request
    arrived: float
    pool: str
    index: int = 0
    prefills: int = 0
    losses: int = 0
    preemptions: int = 0
    tokens: list[int] = field(default_factory=list)
    handoff: Handoff | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[float, ...] = ()
    handed_over_at: float | None = None
    first_token_at: float | None = None
    last: Chunk | None = None

    @property
    def seconds_left(self) -> float:
        return self.arrived + self.request.seconds_left - time.monotonic()

    @property
    def attempt(self) -> Request:
        """The request as a pool sees it now; each time it is sent round it has an id of its own."""
        return replace(
            self.request.resumed(tuple(self.tokens)),
            id=f"{self.request.id}.{self.prefills}",
            age_seconds=time.monotonic() - self.arrived,
            seconds_left=self.seconds_left,
            prompt_logprobs=self.request.prompt_logprobs and self.handoff is None,
        )

    def take(self, handoff: Handoff) -> None:
        """What the first handoff says of the prompt stays; of the rest, the last one counts."""
        if self.handoff is None:
            self.cached_tokens, self.prompt_logprobs = handoff.cached_tokens, handoff.prompt_logprobs
        self.handoff = handoff


@dataclass
class FrontCounters:
    requests: int = 0
    ongoing: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    prefills_repeated: int = 0
    preemptions: int = 0


class Gateway:
    """Carries requests through both pools."""

    def __init__(self, pools: Pools, places: Places, config: GatewayConfig) -> None:
        self._pools = pools
        self._places = places
        self._config = config
        self._retries = RetryBudget(config.max_ongoing)
        self._first_token_seconds = SlidingWindow(RECENT_SECONDS)
        self._user_rates = SlidingWindow(RECENT_SECONDS)
        self.counters = FrontCounters()

    def load(self, ttft_percentile: float) -> FrontLoad:
        """What answers of late were like."""
        return FrontLoad(
            ttft_seconds=self._first_token_seconds.percentile(ttft_percentile),
            user_rate=self._user_rates.percentile(SLOWEST),
        )

    async def generate(self, journey: Journey) -> AsyncGenerator[Chunk]:
        """The request's chunks, each token once. Raises a SparkpoolError if it cannot be finished."""
        self.counters.requests += 1
        self.counters.ongoing += 1
        deadline = asyncio.get_running_loop().time() + journey.seconds_left
        try:
            await self._places.refresh()
            journey.pool = self._places.pool(journey.request, journey.pool)
            if journey.index == 0:  # the other answers come in with the first
                self._places.admit(journey.attempt)
            async with contextlib.aclosing(self._attempts(journey)) as chunks:
                while journey.last is None or journey.last.finish is None:
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks)
                    yield chunk
            self._note(journey)
        except TimeoutError:
            self.counters.failed += 1
            limit = journey.request.seconds_left
            raise DeadlineExceeded(
                f"not finished after {limit} s (deadline_seconds, gateway.request_seconds)"
            ) from None
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

    async def _attempts(self, journey: Journey) -> AsyncGenerator[Chunk]:
        while True:
            journey.prefills += 1
            try:
                async with contextlib.aclosing(self._attempt(journey)) as chunks:
                    async for chunk in chunks:
                        journey.tokens += chunk.tokens
                        journey.last = chunk
                        yield chunk
                return
            except Preempted:  # costs no retry: each time the request gets further
                journey.preemptions += 1
                self.counters.preemptions += 1
            except LOST as error:
                journey.losses += 1
                if journey.losses > self._config.retries:
                    tries = f"{journey.request.id} was lost {journey.losses} times (gateway.retries)"
                    raise Unavailable(f"{tries}; last: {error}") from error
                if not self._retries.take():
                    spent = "too many requests were lost of late for another attempt (gateway.max_ongoing)"
                    raise Unavailable(f"{journey.request.id} was lost, and {spent}; last: {error}") from error
                self.counters.prefills_repeated += 1
                logger.warning(f"{journey.request.id} is prefilled again: {error}")
                await asyncio.sleep(RETRY_SECONDS * 2 ** (journey.losses - 1))

    async def _attempt(self, journey: Journey) -> AsyncGenerator[Chunk]:
        request = journey.attempt
        finished = False
        try:
            await self._places.refresh()
            preferred_replicas = self._places.local(journey.pool, request)
            way = (
                self._in_one_replica(journey, request, preferred_replicas)
                if preferred_replicas
                else self._through_both(journey, request)
            )
            async with way as events:
                async for event in events:
                    assert isinstance(event, Chunk)
                    if journey.first_token_at is None:
                        journey.first_token_at = time.monotonic()
                    finished = event.finish is not None
                    yield event
                    if finished:
                        return
            raise Unavailable("the decode stream ended before the request did")
        finally:
            if not finished:
                self._pools.cancel(request.id)

    @contextlib.asynccontextmanager
    async def _through_both(self, journey: Journey, request: Request) -> AsyncIterator[Events]:
        """What decode says of a request that a prefill replica has handed over."""
        async with contextlib.AsyncExitStack() as stack:
            with self._places.prefilling(request) as preferred_replicas:
                prefill = await stack.enter_async_context(_read(self._pools.prefill(request, preferred_replicas)))
                handoff = await _handoff(prefill)
            journey.take(handoff)
            journey.handed_over_at = time.monotonic()
            await stack.enter_async_context(_kept_open(prefill))
            preferred_replicas = stack.enter_context(self._places.decoding(journey.pool, request))
            decoding = self._pools.decode(journey.pool, journey.attempt, handoff, preferred_replicas)  # older by now
            yield await stack.enter_async_context(_read(decoding))

    @contextlib.asynccontextmanager
    async def _in_one_replica(
        self, journey: Journey, request: Request, preferred_replicas: Sequence[str]
    ) -> AsyncIterator[Events]:
        """What decode says of a request that it prefills itself."""
        with self._places.serving(preferred_replicas, request):
            async with _read(self._pools.serve(journey.pool, request, preferred_replicas)) as events:
                journey.take(await _handoff(events))
                journey.handed_over_at = None
                yield events

    def _note(self, journey: Journey) -> None:
        """A request has ended well."""
        self._retries.give_back()
        if journey.first_token_at is None:
            return
        self._first_token_seconds.add(journey.first_token_at - journey.arrived)
        timings = journey.last.timings if journey.last else None
        if journey.handed_over_at is not None and timings is not None and journey.prefills == 1:
            hop = journey.first_token_at - journey.handed_over_at
            self._places.handed_over(hop + timings.wait_seconds + timings.transfer_seconds)
        seconds = time.monotonic() - journey.first_token_at
        if len(journey.tokens) > 1 and seconds > 0:
            self._user_rates.add((len(journey.tokens) - 1) / seconds)


async def _handoff(events: Events) -> Handoff:
    async for event in events:
        assert isinstance(event, Handoff)
        return event
    raise Unavailable("the prefill stream ended without a handoff")


async def _checked(stream: EventStream) -> AsyncGenerator[Event]:
    """The stream's events, with every way of failing as a SparkpoolError."""
    try:
        async for event in stream:
            if isinstance(event, RequestEnded):
                if event.error is not None:
                    raise event.error
                return
            yield event
    except (RequestCancelledError, TaskCancelledError) as error:
        raise Cancelled("the request was cancelled") from error
    except DeploymentUnavailableError as error:
        raise Unavailable(f"no replica is running ({type(error).__name__})") from error
    except RayError as error:
        raise Unavailable(f"a replica was lost ({type(error).__name__})") from error


@contextlib.asynccontextmanager
async def _read(stream: EventStream) -> AsyncIterator[Events]:
    """A replica's events; its stream is cancelled on the way out, whether it has ended or not."""
    try:
        yield _checked(stream)
    finally:
        stream.cancel()


@contextlib.asynccontextmanager
async def _kept_open(prefill: Events) -> AsyncIterator[None]:
    """Read the prefill stream to its end beside the decode stream: Serve counts it as ongoing meanwhile.

    How it ends changes nothing here. If the pages were lost before they had been read, the decode replica says so.
    """
    task = asyncio.create_task(_drain(prefill))
    try:
        yield
    finally:
        task.cancel()


async def _drain(events: Events) -> None:
    try:
        async for _ in events:
            pass
    except SparkpoolError as error:
        logger.info(f"a prefill stream ended early: {error}")
