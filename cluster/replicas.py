"""The deployments of the two pools. A replica is one engine in a thread of its own; both pools use one shell."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from cluster.engine_thread import EngineThread
from cluster.records import Part, part_of
from engine.config import Config, EngineConfig
from engine.facts import ModelFacts, ReplicaStats
from engine.pages import PageStore
from engine.text import Text
from engine.transfer import NixlTransfer, Transfer, new_agent_name
from engine.types import Event, Handoff, Request
from local.build import Builder, set_threads
from policy.load import ReplicaLoad

logger = logging.getLogger("ray.serve")
DYING_SECONDS = 0.5  # for the requests' errors to leave the process


class EngineReplica:
    """What a replica of either pool does besides its own verb."""

    def __init__(
        self, pool: str, section: EngineConfig, builder: Builder, build: Callable[[str], Any], stream_interval: int = 1
    ) -> None:
        self._pool = pool
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._facts = builder.facts
        logging.getLogger("sparkpool").parent = logger  # the engine's own words go where Serve's do
        agent = new_agent_name(f"{pool}-{self._replica}")
        self._thread = EngineThread(lambda: build(agent), f"{pool} engine", _die, stream_interval)
        if section.warm_up:
            self._thread.call(lambda engine: engine.warm_up()).result()
        how = f"{builder.model.dtype}, {builder.model.kernels}"
        logger.info(f"{pool} replica {self._replica} is ready: {self._facts.name}, {how}")

    async def facts(self) -> ModelFacts:
        return self._facts

    async def cancel(self, request_id: str) -> None:
        """Drop a request, if it is here. (Cancelling the stream should do; Ray does it as best it can.)"""
        self._thread.cancel(request_id)

    async def stats(self) -> ReplicaStats:
        """The engine's own numbers, between two steps."""
        stats: ReplicaStats = await asyncio.wrap_future(self._thread.call(lambda engine: engine.stats()))
        return replace(stats, replica=self._replica, pool=self._pool)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What scaling goes by: Serve asks every second, and takes it to cluster/autoscale.py."""
        return ReplicaLoad.of(await self.stats()).metrics

    async def assert_consistent(self) -> None:
        """Raise AssertionError unless every page is accounted for."""
        await asyncio.wrap_future(self._thread.call(lambda engine: engine.assert_consistent()))

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed."""
        if self._thread.failure is not None:
            raise self._thread.failure

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.stop()


class PrefillReplica(EngineReplica):
    """One replica of the prefill pool."""

    def __init__(self, config: Config) -> None:
        set_threads(config.prefill, config)
        builder = Builder(config, config.prefill)
        super().__init__("prefill", config.prefill, builder, lambda name: builder.prefiller(name, _nixl(config)))

    async def prefill(self, request: Request, preferred_replicas: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Yields the `Handoff`, then stays open until the pages have been released, and ends with `RequestEnded`.

        Staying open is what makes Serve wait for the pages when it scales down or redeploys; cancelling frees them.
        `preferred_replicas` are for the router that brought the request here (cluster/router.py).
        """
        async for event in self._thread.stream(request.id, lambda engine: engine.add(request)):
            yield event


class DecodeReplica(EngineReplica):
    """One replica of a decode pool."""

    def __init__(self, config: Config, pool: str) -> None:
        section = config.decode[pool]
        self._prefills = section.prefills
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
        """Yields `Chunk`s up to the one that finishes the request, or `RequestEnded` with an error."""
        async for event in self._thread.stream(request.id, lambda engine: engine.add(request, handoff)):
            yield event

    async def records(self, skip: dict[str, int]) -> Part | None:
        """The next part of what is recorded here (cluster/records.py); None if nothing is."""
        file: Path | None = await asyncio.wrap_future(self._thread.call(lambda engine: engine.record_file))
        return None if file is None else await asyncio.to_thread(part_of, file, self._pool, skip)

    async def serve(self, request: Request, preferred_replicas: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Prefills the request here. Yields its `Handoff`, then what `decode` yields.

        Only a pool with `local_chunk_tokens` can do that.
        """
        assert self._prefills, f"decode.{self._pool}.local_chunk_tokens is 0: requests come here with a handoff"
        async for event in self._thread.stream(request.id, lambda engine: engine.serve(request)):
            yield event


def _die() -> None:
    """A replica whose engine has failed ends at once, so that Serve routes around it and starts another."""
    time.sleep(DYING_SECONDS)
    os._exit(1)


def _nixl(config: Config) -> Callable[[str, PageStore], Transfer]:
    return lambda name, store: NixlTransfer(name, store, config.transfer.num_threads, config.transfer.progress_thread)
