"""The replicas of all pools, behind Serve's handles. Here alone Ray's exceptions become SparkpoolErrors."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from cluster.records import RecordPart
from cluster.serving.gateway import EventStream
from engine.errors import Cancelled, SparkpoolError, Unavailable
from engine.facts import ModelFacts
from engine.stats import ReplicaStats
from engine.types import Event, Handoff, Request

logger = logging.getLogger("ray.serve")
ANSWER_SECONDS = 5.0


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise each way in which Ray or gRPC ends a call as a SparkpoolError."""
    try:
        yield
    except (RequestCancelledError, TaskCancelledError) as error:
        raise Cancelled("the request was cancelled") from error
    except DeploymentUnavailableError as error:
        raise Unavailable(f"no replica is running ({type(error).__name__})") from error
    except (RayError, RayServeException) as error:
        raise Unavailable(f"a replica was lost ({type(error).__name__})") from error
    except grpc.aio.AioRpcError as error:
        raise Unavailable(f"the stream to a replica broke ({error.code().name})") from error


async def broadcast(handle: DeploymentHandle, method: str, *args: object) -> list[Any]:
    """Call `method` of every replica, and return their answers. Raise Unavailable if one is lost meanwhile."""
    seconds = 2 * ANSWER_SECONDS
    try:
        with translated_errors():
            answers: list[Any] = await asyncio.to_thread(
                lambda: handle.broadcast(method, *args).results(timeout_s=seconds)
            )
    except TimeoutError as error:
        raise Unavailable(f"a replica did not answer within {seconds} s") from error
    return answers


class ReplicaStream:
    """A replica's answer to one request."""

    def __init__(self, response: EventStream) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Event]:
        with translated_errors():
            async for event in self._response:
                yield event

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
        """Tell every replica to drop a request. Return at once: the caller's task may be being cancelled.

        The call runs in an empty context, or Serve would take it for a part of the cancelled request and cancel it too.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._cancel(request_id), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def facts(self) -> ModelFacts:
        """Return the facts of the model that the prefill pool serves. Raise Unavailable if no replica answers."""
        with translated_errors():
            facts: ModelFacts = await self._handles["prefill"].facts.remote()
        return facts

    async def healthy(self) -> bool:
        """Return whether a replica of every pool answers."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with translated_errors():
                    await asyncio.gather(*(handle.facts.remote() for handle in self._handles.values()))
        except (TimeoutError, Unavailable):
            return False
        return True

    async def stats(self) -> list[ReplicaStats]:
        """Return the statistics of every replica. Raise Unavailable if one is lost while it is asked."""
        return [stats for pool in await self._ask("stats", *self._handles) for stats in pool]

    async def records(self, skip: dict[str, int]) -> list[RecordPart | None]:
        """Return the next part of what each decode replica has recorded. Raise Unavailable if one is lost meanwhile."""
        return [part for pool in await self._ask("records", *self._decode, args=(skip,)) for part in pool]

    async def _ask(self, method: str, *pools: str, args: tuple[object, ...] = ()) -> list[list[Any]]:
        try:
            return await asyncio.gather(*(broadcast(self._handles[pool], method, *args) for pool in pools))
        except Unavailable as error:
            raise Unavailable(f"{error}; ask again") from error

    async def _cancel(self, request_id: str) -> None:
        for pool, handle in self._handles.items():
            try:
                await broadcast(handle, "cancel", request_id)
            except SparkpoolError as error:
                logger.warning(f"{request_id} could not be cancelled in all of {pool}: {error}")


def _called(method: DeploymentHandle, *args: object, **kwargs: object) -> ReplicaStream:
    """Call a replica under a new id.

    Calls that a request makes inherit its id, and Serve's router (2.60) keeps waiting calls by their ids: of several
    answers to one prompt it would forget all but one.
    """
    return ReplicaStream(contextvars.Context().run(method.remote, *args, **kwargs))
