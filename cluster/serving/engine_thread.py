"""Runs one engine in a thread of its own, for an event loop.

Calls go to the thread as functions of the engine and come back as futures, results and exceptions alike. Events go to
the event loop, all those of a step together, and there into the stream of their request. While no request is under way
the thread sleeps; a call wakes it.
"""

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from engine.clock import MonotonicClock
from engine.engine import Engine
from engine.errors import Cancelled, EngineFailure, SparkpoolError
from engine.types import Chunk, Ended, Event, coalesced

E = TypeVar("E", bound=Engine)
T = TypeVar("T")
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class EngineCall(Generic[E, T]):
    """A function to be run between two steps, and the future of its result."""

    function: Callable[[E], T]
    future: "Future[T]"

    def run(self, engine: E) -> None:
        if not self.future.set_running_or_notify_cancel():
            return  # the caller was cancelled meanwhile
        try:
            self.future.set_result(self.function(engine))
        except (SparkpoolError, AssertionError) as error:
            self.future.set_exception(error)


class RequestStream:
    """The events of one request on their way to its event loop, which calls `put` and `take`.

    Chunks wait until they have `interval` tokens together; the first chunk, the last one and other events do not wait.
    """

    def __init__(self, interval: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._interval = interval
        self._waiting: list[Event] = []
        self._tokens = interval  # so that the first chunk does not wait
        self._ready = asyncio.Event()

    def put(self, events: Sequence[Event]) -> None:
        self._waiting += events
        for event in events:
            if isinstance(event, Chunk) and event.finish is None:
                self._tokens += len(event.tokens)
            else:
                self._tokens += self._interval
        if self._tokens >= self._interval:
            self._ready.set()

    async def take(self) -> list[Event]:
        """Wait for events and return all that have come, with neighbouring chunks joined into one."""
        await self._ready.wait()
        self._ready.clear()
        events, self._waiting, self._tokens = self._waiting, [], 0
        return coalesced(events)


class EngineThread(Generic[E]):
    """Builds an engine in its own thread and runs it there. Raises what `build` raises.

    A step that raises is a bug: every request of the engine ends with an EngineFailure, then `on_failure` is called.
    """

    def __init__(
        self,
        build: Callable[[], E],
        name: str,
        on_failure: Callable[[], None] = lambda: None,
        stream_interval: int = 1,
    ) -> None:
        self._on_failure = on_failure
        self._stream_interval = stream_interval
        self._clock = MonotonicClock()
        self._calls: deque[EngineCall[E, Any]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._streams: dict[str, RequestStream] = {}
        self.failure: EngineFailure | None = None
        built: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, built), name=name, daemon=True)
        self._thread.start()
        built.result()

    def call(self, function: Callable[[E], T]) -> "Future[T]":
        """Run `function(engine)` between two steps."""
        future: Future[T] = Future()
        with self._wake:
            if self.failure is not None or self._stopping:
                future.set_exception(self.failure or EngineFailure("the engine is shutting down"))
                return future
            self._calls.append(EngineCall(function, future))
            self._wake.notify()
        return future

    async def stream(self, request_id: str, add: Callable[[E], None]) -> AsyncIterator[Event]:
        """Add a request with `add(engine)` and yield its events up to the last.

        Errors come as `Ended`. A caller that stops early cancels the request in the engine.
        """
        assert request_id not in self._streams, f"request {request_id} twice"
        stream = self._streams[request_id] = RequestStream(self._stream_interval)
        try:
            try:
                await asyncio.wrap_future(self.call(add))
            except SparkpoolError as error:
                yield Ended(request_id=request_id, error=error)
                return
            while True:
                for event in await stream.take():
                    yield event
                    if isinstance(event, Ended) or (isinstance(event, Chunk) and event.finish is not None):
                        return
        finally:
            del self._streams[request_id]
            self.call(lambda engine: engine.cancel(request_id))

    def cancel(self, request_id: str) -> None:
        """End a request's stream and free what the engine holds for it. Unknown ids are fine."""
        if stream := self._streams.get(request_id):
            stream.put([Ended(request_id=request_id, error=Cancelled(f"{request_id} was cancelled"))])

    def stop(self) -> None:
        """End the thread after its current step, and wait for that."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self, build: Callable[[], E], built: "Future[None]") -> None:
        with torch.inference_mode():  # grad mode is per thread
            try:
                engine = build()
            except BaseException as error:  # noqa: BLE001 - the constructor raises it again
                built.set_exception(error)
                return
            built.set_result(None)
            try:
                while self._take_calls(engine):
                    self._deliver(engine.step())
            except Exception as error:  # noqa: BLE001 - a bug of the engine: it ends every request
                self._fail(error)

    def _take_calls(self, engine: E) -> bool:
        """Sleep until the engine's deadline or a call, and run the calls. Return False if the thread should stop."""
        with self._wake:
            while not self._calls and not self._stopping:
                deadline = engine.next_deadline()
                seconds = None if deadline is None else deadline - self._clock.now()
                if seconds is not None and seconds <= 0:
                    break
                self._wake.wait(seconds)
                if seconds is not None:
                    break
            calls, self._calls = self._calls, deque()
        for call in calls:
            call.run(engine)
        return not self._stopping

    def _deliver(self, events: list[Event]) -> None:
        by_stream: dict[RequestStream, list[Event]] = defaultdict(list)
        for event in events:
            if stream := self._streams.get(event.request_id):
                by_stream[stream].append(event)
        for loop in {stream.loop for stream in by_stream}:
            loop.call_soon_threadsafe(_put, {s: mine for s, mine in by_stream.items() if s.loop is loop})

    def _fail(self, error: Exception) -> None:
        failure = EngineFailure(f"{self._thread.name}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        logger.error(f"{failure}; this replica ends", exc_info=error)
        with self._wake:
            self.failure = failure
            calls, self._calls = self._calls, deque()
        for call in calls:
            call.future.set_exception(failure)
        for request_id, stream in list(self._streams.items()):
            stream.loop.call_soon_threadsafe(stream.put, [Ended(request_id=request_id, error=failure)])
        self._on_failure()


def _put(events: dict[RequestStream, list[Event]]) -> None:
    for stream, mine in events.items():
        stream.put(mine)
