"""Both pools as the gateway sees them: streams to one replica, words to all."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import grpc
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.records import RecordPart
from cluster.serving.gateway import EventStream
from engine.errors import Unavailable
from engine.facts import ModelFacts
from engine.stats import ReplicaStats
from engine.types import Event, Handoff, Request

logger = logging.getLogger("ray.serve")
ANSWER_SECONDS = 5.0
GONE = (RayError, grpc.aio.AioRpcError)  # how a replica that dies ends a call: by Ray, or by the stream between us


class ReplicaStream:
    """A replica's answer. If the stream to it breaks, the replica is lost."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._response:
                yield event
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"the stream to a replica broke ({error.code().name})") from error

    def cancel(self) -> object:
        return self._response.cancel()


class ServePools:
    """The deployments of the prefill pool and of every decode pool, behind their handles."""

    def __init__(self, prefill: DeploymentHandle, decode: dict[str, DeploymentHandle]) -> None:
        self._handles = {"prefill": prefill, **decode}
        self._prefill = prefill.options(stream=True)
        self._decode = {pool: handle.options(stream=True) for pool, handle in decode.items()}
        self._tasks: set[asyncio.Task[None]] = set()

    def prefill(self, request: Request, preferred_replicas: Sequence[str]) -> EventStream:
        return _called(self._prefill.prefill, request, preferred_replicas=tuple(preferred_replicas))

    def decode(self, pool: str, request: Request, handoff: Handoff, preferred_replicas: Sequence[str]) -> EventStream:
        return _called(self._decode[pool].decode, request, handoff, preferred_replicas=tuple(preferred_replicas))

    def serve(self, pool: str, request: Request, preferred_replicas: Sequence[str]) -> EventStream:
        return _called(self._decode[pool].serve, request, preferred_replicas=tuple(preferred_replicas))

    def cancel(self, request_id: str) -> None:
        """Tell every replica to drop a request. Returns at once: it is called while a task is being cancelled.

        In an empty context, or Serve would take this for a part of the cancelled request and cancel it too.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._cancel(request_id), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def facts(self) -> ModelFacts:
        """The model that the prefill pool serves. Raises Unavailable."""
        try:
            facts: ModelFacts = await self._handles["prefill"].facts.remote()
        except (*GONE, DeploymentUnavailableError) as error:
            raise Unavailable(f"no prefill replica answers ({type(error).__name__})") from error
        return facts

    async def healthy(self) -> bool:
        """Whether a replica of every pool answers."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.gather(*(handle.facts.remote() for handle in self._handles.values()))
        except (TimeoutError, *GONE, DeploymentUnavailableError):
            return False
        return True

    async def stats(self) -> list[ReplicaStats]:
        """Every replica of all pools. Raises Unavailable if one is lost while it is asked."""
        try:
            found = await asyncio.gather(*(_all(handle, "stats") for handle in self._handles.values()))
        except GONE as error:
            raise Unavailable(f"a replica was lost while it was asked ({type(error).__name__}); ask again") from error
        return [stats for pool in found for stats in pool]

    async def records(self, skip: dict[str, int]) -> list[RecordPart | None]:
        """The next part of what each decode replica has recorded. Raises Unavailable if one is lost meanwhile."""
        try:
            found = await asyncio.gather(*(_all(self._handles[pool], "records", skip) for pool in self._decode))
        except GONE as error:
            raise Unavailable(f"a replica was lost while it was asked ({type(error).__name__}); ask again") from error
        return [part for pool in found for part in pool]

    async def _cancel(self, request_id: str) -> None:
        for pool in self._handles:
            await cancel_everywhere(partial(self._handles.__getitem__, pool), request_id, pool)


async def cancel_everywhere(find: Callable[[], DeploymentHandle], name: str, deployment: str) -> None:
    """Tell every replica of a deployment, whose handle `find` returns, to cancel a request or a call by its name. Log a
    warning if that fails."""
    try:
        await _all(find(), "cancel", name)
    except (*GONE, RayServeException, TimeoutError) as error:
        logger.warning(f"{name} could not be cancelled in all of {deployment}: {type(error).__name__}: {error}")


def _called(method: DeploymentHandle, *args: Any, **kwargs: Any) -> ReplicaStream:
    """A call with an id of its own. Calls that a request makes inherit the id of that, and Serve's router (2.60) keeps
    those that wait by their ids: of several answers to one prompt it would forget all but one."""
    return ReplicaStream(contextvars.Context().run(method.remote, *args, **kwargs))


async def _all(handle: DeploymentHandle, method: str, *args: Any) -> list[Any]:
    """The answers of all replicas."""
    answers: list[Any] = await asyncio.to_thread(
        lambda: handle.broadcast(method, *args).results(timeout_s=2 * ANSWER_SECONDS)
    )
    return answers
