"""One engine in a thread of its own, seen from an event loop.

Everything crosses in one of two ways. Calls go to the thread as functions of the engine and come back as futures,
results and exceptions alike. Events go to the loop, one hand-over per step, and end in the stream of their request.
The thread sleeps when the engine says that nothing is under way; a call wakes it.
"""

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from engine.clock import MonotonicClock
from engine.errors import Cancelled, EngineFailure, SparkpoolError
from engine.types import Chunk, Event, RequestEnded, merge_chunks

T = TypeVar("T")
logger = logging.getLogger("ray.serve")


class Engine(Protocol):
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> list[Event]: ...
    def next_deadline(self) -> float | None: ...


class Stream:
    """The events of one request on their way to its loop. `put` and `take` are called there.

    Chunks can be taken when they have `interval` tokens; the first one, and whatever ends or is no chunk, at once.
    """

    def __init__(self, interval: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._interval = interval
        self._waiting: list[Event] = []
        self._tokens = interval  # as if they had waited, so that the first is not held back
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
        """Everything that has come since the last time, at least one event; chunks that waited together are one."""
        await self._ready.wait()
        self._ready.clear()
        events, self._waiting, self._tokens = self._waiting, [], 0
        return merge_chunks(events)


class EngineThread:
    """Builds an engine in its own thread and runs it there. Raises what building raised.

    A step that raises is a bug: every request here ends with an EngineFailure, then `on_failure` is called.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        name: str,
        on_failure: Callable[[], None] = lambda: None,
        stream_interval: int = 1,
    ) -> None:
        self._on_failure = on_failure
        self._stream_interval = stream_interval
        self._clock = MonotonicClock()
        self._calls: deque[tuple[Callable[[Any], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._streams: dict[str, Stream] = {}
        self.failure: EngineFailure | None = None
        built: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, built), name=name, daemon=True)
        self._thread.start()
        built.result()

    def call(self, function: Callable[[Any], T]) -> "Future[T]":
        """Run `function(engine)` between two steps."""
        future: Future[T] = Future()
        with self._wake:
            if self.failure is not None or self._stopping:
                future.set_exception(self.failure or EngineFailure("the engine is shutting down"))
                return future
            self._calls.append((function, future))
            self._wake.notify()
        return future

    async def stream(self, request_id: str, add: Callable[[Any], None]) -> AsyncIterator[Event]:
        """Add a request with `add(engine)` and yield its events up to its last.

        Errors come as `RequestEnded`. Leaving early cancels the request in the engine.
        """
        assert request_id not in self._streams, f"request {request_id} twice"
        stream = self._streams[request_id] = Stream(self._stream_interval)
        try:
            try:
                await asyncio.wrap_future(self.call(add))
            except SparkpoolError as error:
                yield RequestEnded(request_id=request_id, error=error)
                return
            while True:
                for event in await stream.take():
                    yield event
                    if isinstance(event, RequestEnded) or (isinstance(event, Chunk) and event.finish is not None):
                        return
        finally:
            del self._streams[request_id]
            self.call(lambda engine: engine.cancel(request_id))

    def cancel(self, request_id: str) -> None:
        """End a request's stream, and free what the engine holds for it. Unknown ids are fine."""
        if stream := self._streams.get(request_id):
            stream.put([RequestEnded(request_id=request_id, error=Cancelled(f"{request_id} was cancelled"))])

    def stop(self) -> None:
        """End the thread after the step it is in."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self, build: Callable[[], Any], built: "Future[None]") -> None:
        with torch.inference_mode():  # grad mode is per thread
            try:
                engine = build()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the constructor raises it
                built.set_exception(error)
                return
            built.set_result(None)
            try:
                while self._take_calls(engine):
                    self._deliver(engine.step())
            except Exception as error:  # noqa: BLE001 - a bug of ours: every request here ends with it
                self._fail(error)

    def _take_calls(self, engine: Engine) -> bool:
        """Sleep until the engine's deadline or a call; run the calls. False when it is time to stop."""
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
        for function, future in calls:
            if not future.set_running_or_notify_cancel():
                continue  # whoever called has been cancelled meanwhile
            try:
                future.set_result(function(engine))
            except (SparkpoolError, AssertionError) as error:
                future.set_exception(error)
        return not self._stopping

    def _deliver(self, events: list[Event]) -> None:
        by_stream: dict[Stream, list[Event]] = defaultdict(list)
        for event in events:
            if stream := self._streams.get(event.request_id):
                by_stream[stream].append(event)
        for loop in {stream.loop for stream in by_stream}:
            loop.call_soon_threadsafe(_put, {s: mine for s, mine in by_stream.items() if s.loop is loop})

    def _fail(self, error: Exception) -> None:
        failure = EngineFailure(f"{self._thread.name}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        logger.error(f"{failure}; this replica is finished", exc_info=error)
        with self._wake:
            self.failure = failure
            calls, self._calls = self._calls, deque()
        for _, future in calls:
            future.set_exception(failure)
        for request_id, stream in list(self._streams.items()):
            stream.loop.call_soon_threadsafe(stream.put, [RequestEnded(request_id=request_id, error=failure)])
        self._on_failure()


def _put(events: dict[Stream, list[Event]]) -> None:
    for stream, mine in events.items():
        stream.put(mine)
