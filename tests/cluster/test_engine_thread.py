"""The thread shell over a scripted engine: calls and events cross, failures reach everyone, nothing hangs."""

import asyncio
import threading
import time

import pytest

from cluster.serving.engine_thread import EngineThread
from engine.errors import BadRequest, Cancelled, EngineFailure
from engine.types import Chunk, Ended, Event, FinishReason
from tests.cluster.doubles import chunk


class CountingEngine:
    """Gives each request its number of tokens, one per step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.thread = threading.current_thread()
        self.broken = False

    def add(self, request_id: str, num_tokens: int) -> None:
        if num_tokens < 0:
            raise BadRequest("num_tokens", "is negative")
        self.left[request_id] = num_tokens

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.left.pop(request_id, None)

    def step(self) -> list[Event]:
        assert threading.current_thread() is self.thread
        if self.broken:
            raise ZeroDivisionError("a bug")
        events: list[Event] = []
        for request_id in list(self.left):
            self.left[request_id] -= 1
            last = self.left[request_id] == 0
            made = chunk(1, finish=FinishReason.LENGTH if last else None)
            events.append(Chunk(**{**vars(made), "request_id": request_id}))
            if last:
                del self.left[request_id]
        return events

    def next_deadline(self) -> float | None:
        return 0.0 if self.left else None


class SlowEngine(CountingEngine):
    """Steps so slowly that the loop takes every token as it comes."""

    def step(self) -> list[Event]:
        time.sleep(0.02)
        return super().step()


def num_tokens(events: list[Event]) -> int:
    """Chunks that waited together are one, so events are not what to count."""
    return sum(len(event.tokens) for event in events if isinstance(event, Chunk))


async def collect(thread: EngineThread, request_id: str, num_tokens: int) -> list[Event]:
    return [event async for event in thread.stream(request_id, lambda engine: engine.add(request_id, num_tokens))]


def test_streams_of_several_requests_run_side_by_side() -> None:
    thread = EngineThread(CountingEngine, "test engine")

    async def both() -> list[list[Event]]:
        return await asyncio.gather(collect(thread, "a", 3), collect(thread, "b", 200))

    a, b = asyncio.run(both())
    assert (num_tokens(a), num_tokens(b)) == (3, 200)
    thread.stop()


def test_what_was_made_while_the_loop_was_busy_comes_as_one_chunk() -> None:
    thread = EngineThread(CountingEngine, "test engine")

    async def fall_behind() -> list[Event]:
        stream = thread.stream("a", lambda engine: engine.add("a", 10**9))
        await anext(stream)
        time.sleep(0.1)  # the loop's, on purpose
        late = [await anext(stream), await anext(stream)]  # the first may have been ready before that
        await stream.aclose()
        return late

    assert max(num_tokens([event]) for event in asyncio.run(fall_behind())) > 1
    thread.stop()


def test_an_interval_gathers_tokens_but_holds_back_neither_the_first_nor_the_last() -> None:
    thread = EngineThread(SlowEngine, "test engine", stream_interval=4)

    sizes = [num_tokens([event]) for event in asyncio.run(collect(thread, "a", 10))]

    assert sizes == [1, 4, 4, 1]
    thread.stop()


def test_what_building_raises_the_constructor_raises() -> None:
    with pytest.raises(BadRequest):
        EngineThread(lambda: (_ for _ in ()).throw(BadRequest("x", "y")), "test engine")


def test_an_error_of_add_ends_the_stream_and_nothing_else() -> None:
    thread = EngineThread(CountingEngine, "test engine")

    events = asyncio.run(collect(thread, "a", -1))

    assert isinstance(events[0], Ended)
    assert isinstance(events[0].error, BadRequest)
    assert num_tokens(asyncio.run(collect(thread, "b", 2))) == 2
    thread.stop()


def test_leaving_a_stream_cancels_its_request() -> None:
    thread = EngineThread(CountingEngine, "test engine")

    async def leave() -> None:
        stream = thread.stream("a", lambda engine: engine.add("a", 10**9))
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert thread.call(lambda engine: (engine.cancelled, engine.left)).result() == (["a"], {})
    thread.stop()


def test_a_request_can_be_cancelled_by_name() -> None:
    thread = EngineThread(CountingEngine, "test engine")

    async def cancel() -> Event:
        stream = thread.stream("a", lambda engine: engine.add("a", 10**9))
        await anext(stream)
        thread.cancel("a")
        return [event async for event in stream][-1]

    last = asyncio.run(cancel())
    assert isinstance(last, Ended)
    assert isinstance(last.error, Cancelled)
    thread.stop()


def test_a_caller_cancelled_before_its_call_ran_does_not_hurt_the_thread() -> None:
    """It once did: the thread set the result of a future that had been cancelled, and ended."""
    thread = EngineThread(CountingEngine, "test engine")
    gate = threading.Event()
    blocked = thread.call(lambda engine: gate.wait(10))
    late = thread.call(lambda engine: engine.add("late", 1))

    assert late.cancel()
    gate.set()

    assert blocked.result()
    assert thread.call(lambda engine: dict(engine.left)).result() == {}
    thread.stop()


def test_a_step_that_raises_ends_every_request_and_says_so() -> None:
    failed = threading.Event()
    thread = EngineThread(CountingEngine, "test engine", on_failure=failed.set)

    async def both() -> list[list[Event]]:
        running = asyncio.gather(collect(thread, "a", 10**9), collect(thread, "b", 10**9))
        await asyncio.sleep(0.05)
        thread.call(lambda engine: setattr(engine, "broken", True))
        return await running

    for events in asyncio.run(both()):
        assert isinstance(events[-1], Ended)
        assert isinstance(events[-1].error, EngineFailure)
        assert "ZeroDivisionError: a bug" in str(events[-1].error)
    assert failed.wait(5)
    with pytest.raises(EngineFailure):
        thread.call(lambda engine: None).result()
