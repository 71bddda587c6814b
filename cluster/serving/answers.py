"""Several answers to one prompt, merged into one stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from cluster.serving.gateway import Gateway
from engine.types import Chunk
from policy.request_state import RequestState

IndexedChunk = tuple[RequestState, Chunk]


async def answers(gateway: Gateway, states: list[RequestState]) -> AsyncGenerator[IndexedChunk]:
    """Yield each request's chunks as they come. If one fails, all end.

    The others begin when the first has its first token: then they find the pages of the prompt.
    """
    first, *others = states
    chunks: asyncio.Queue[IndexedChunk | None] = asyncio.Queue()
    begun = asyncio.Event()

    async def follow(state: RequestState) -> None:
        async with contextlib.aclosing(gateway.generate(state)) as generated:
            async for chunk in generated:
                chunks.put_nowait((state, chunk))
                begun.set()

    async def follow_later(state: RequestState) -> None:
        await begun.wait()
        await follow(state)

    async def follow_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow(first))
                for state in others:
                    group.create_task(follow_later(state))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            chunks.put_nowait(None)

    task = asyncio.create_task(follow_all())
    try:
        while (entry := await chunks.get()) is not None:
            yield entry
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
