"""Several answers to one prompt: as many journeys, merged into one stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from cluster.serving.gateway import Gateway, Journey
from engine.types import Chunk

Spoken = tuple[Journey, Chunk]


async def answers(gateway: Gateway, journeys: list[Journey]) -> AsyncGenerator[Spoken]:
    """What each journey says, as it comes. If one fails, all end.

    The others set out when the first has its first token: then they find the pages of the prompt.
    """
    first, *others = journeys
    spoken: asyncio.Queue[Spoken | None] = asyncio.Queue()
    begun = asyncio.Event()

    async def follow(journey: Journey) -> None:
        async with contextlib.aclosing(gateway.generate(journey)) as chunks:
            async for chunk in chunks:
                spoken.put_nowait((journey, chunk))
                begun.set()

    async def follow_later(journey: Journey) -> None:
        await begun.wait()
        await follow(journey)

    async def follow_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow(first))
                for journey in others:
                    group.create_task(follow_later(journey))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            spoken.put_nowait(None)

    task = asyncio.create_task(follow_all())
    try:
        while (said := await spoken.get()) is not None:
            yield said
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
