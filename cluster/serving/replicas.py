"""The Serve deployments of both kinds of pool. Each replica runs one engine in a thread of its own."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Generic

from ray import serve

from cluster.records import RecordPart, part_of
from cluster.serving.engine_thread import E, EngineThread
from decode import Decoder
from engine.config import Config, EngineConfig
from engine.facts import ModelFacts
from engine.pages import PageStore
from engine.stats import ReplicaStats
from engine.text import Text
from engine.transfer import NixlTransfer, Transfer, new_agent_name
from engine.types import Event, Handoff, Request
from local.build import Builder, set_threads
from local.colocated import ColocatedEngine
from policy.load import ReplicaLoad
from prefill import Prefiller

logger = logging.getLogger("ray.serve")
ERROR_SECONDS = 0.5  # for the requests' errors to leave the process before it ends


class EngineDeployment(Generic[E]):
    """Runs the engine of a replica of either kind of pool, and answers what both kinds are asked."""

    def __init__(
        self, pool: str, section: EngineConfig, builder: Builder, build: Callable[[str], E], stream_interval: int = 1
    ) -> None:
        self._pool = pool
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._facts = builder.facts
        logging.getLogger("sparkpool").parent = logger  # so the engine logs where Serve does
        agent = new_agent_name(f"{pool}-{self._replica}")
        self._thread = EngineThread(lambda: build(agent), f"{pool} engine", _end_process, stream_interval)
        if section.warm_up:
            self._thread.call(lambda engine: engine.warm_up()).result()
        how = f"{builder.model.dtype}, {builder.model.kernels}"
        logger.info(f"{pool} replica {self._replica} is ready: {self._facts.name}, {how}")

    async def facts(self) -> ModelFacts:
        return self._facts

    async def cancel(self, request_id: str) -> None:
        """Drop a request, if it is here. (Cancelling its stream should suffice, but Ray does that as best effort.)"""
        self._thread.cancel(request_id)

    async def stats(self) -> ReplicaStats:
        """Return the engine's statistics between two steps."""
        stats = await asyncio.wrap_future(self._thread.call(lambda engine: engine.stats()))
        return stats.named(self._replica, self._pool)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the replica's load: Serve asks every second and passes it to cluster/serving/autoscale.py."""
        return ReplicaLoad.of(await self.stats()).metrics

    async def assert_consistent(self) -> None:
        """Raise AssertionError unless every page is accounted for."""
        await asyncio.wrap_future(self._thread.call(lambda engine: engine.assert_consistent()))

    def check_health(self) -> None:
        """Raise the engine's failure, if it has failed: Serve then replaces the replica."""
        if self._thread.failure is not None:
            raise self._thread.failure

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.stop()


class PrefillDeployment(EngineDeployment[Prefiller]):
    """One replica of the prefill pool."""

    def __init__(self, config: Config) -> None:
        set_threads(config.prefill, config)
        builder = Builder(config, config.prefill)
        super().__init__("prefill", config.prefill, builder, lambda name: builder.prefiller(name, _nixl(config)))

    async def prefill(self, request: Request, preferred_replicas: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Yield the `Handoff`, stay open until its pages have been released, then yield `RequestEnded`.

        Serve waits for an open call when it scales down or redeploys, so for the pages too; cancelling frees them.
        `preferred_replicas` are for the router that brought the request here (cluster/serving/router.py).
        """
        async for event in self._thread.stream(request.id, lambda engine: engine.add(request)):
            yield event


class DecodeDeployment(EngineDeployment[Decoder | ColocatedEngine]):
    """One replica of a decode pool."""

    def __init__(self, config: Config, pool: str) -> None:
        section = config.decode[pool]
        set_threads(section, config)
        builder = Builder(config, section)
        text = Text.load(config.model.path)
        super().__init__(
            pool,
            section,
            builder,
            lambda name: builder.decode_engine(name, _nixl(config), text, pool),
            section.stream_interval,
        )

    async def decode(
        self, request: Request, handoff: Handoff, preferred_replicas: Sequence[str] = ()
    ) -> AsyncIterator[Event]:
        """Yield `Chunk`s up to the one that finishes the request, or `RequestEnded` with an error."""
        async for event in self._thread.stream(request.id, lambda engine: engine.add(request, handoff)):
            yield event

    async def serve(self, request: Request, preferred_replicas: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Prefill the request here. Yield its `Handoff`, then what `decode` yields.

        Only the replicas of a pool with `local_chunk_tokens` can do that.
        """

        def add(engine: Decoder | ColocatedEngine) -> None:
            assert isinstance(engine, ColocatedEngine), f"decode.{self._pool}.local_chunk_tokens is 0"
            engine.serve(request)

        async for event in self._thread.stream(request.id, add):
            yield event

    async def records(self, skip: dict[str, int]) -> RecordPart | None:
        """Return the next part of the steps recorded here (cluster/records.py); None if none are."""
        file: Path | None = await asyncio.wrap_future(self._thread.call(lambda engine: engine.record_file))
        return None if file is None else await asyncio.to_thread(part_of, file, self._pool, skip)


def _end_process() -> None:
    """End a replica whose engine has failed at once, so that Serve routes around it and starts another."""
    time.sleep(ERROR_SECONDS)
    os._exit(1)


def _nixl(config: Config) -> Callable[[str, PageStore], Transfer]:
    return lambda name, store: NixlTransfer(name, store, config.transfer.num_threads, config.transfer.progress_thread)
