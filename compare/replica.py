"""One simulated replica: a real engine on a virtual clock, between the doubles of compare/virtual.py."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from compare.simulator.acceptance import AcceptanceModel
from compare.simulator.outcome import Machine
from compare.virtual import (
    DrawnTransfer,
    NoModel,
    NoStore,
    NoText,
    PrefillTimes,
    ReplicaClock,
    SimulatedStepRunner,
    Timeline,
    Wire,
)
from decode.decoder import Decoder
from decode.plan import planner_of
from decode.record import NoRecorder
from engine.config import DecodeConfig, PrefillConfig
from engine.drafters import NoDrafter
from engine.errors import SparkpoolError
from engine.facts import ReplicaStats
from engine.pages import CacheLayout, Pages
from engine.steptime import StepTimes
from engine.types import Event, RequestEnded
from hardware.link import Link
from hardware.pace import ModelledPace
from local.colocated import ColocatedEngine
from prefill.prefiller import Prefiller

POLL_SECONDS = 0.001
FINGERPRINT = {"model": "simulated"}


class Engine(Protocol):
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> list[Event]: ...
    def next_deadline(self) -> float | None: ...
    def stats(self) -> ReplicaStats: ...
    def assert_consistent(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What the replicas of one pool are made of: pages of each group, and the times of their device's steps."""

    layout: CacheLayout
    num_pages: dict[str, int]
    prefill_times: PrefillTimes
    step_times: StepTimes
    link: Link
    acceptance: AcceptanceModel | None = None
    prefix_caching: bool = True


class Replica:
    """Runs its engine as the cluster's thread does (cluster/engine_thread.py): calls between steps, steps while the
    engine has something to do, sleep until its deadline otherwise."""

    def __init__(self, name: str, pool: str, engine: Engine, clock: ReplicaClock, timeline: Timeline) -> None:
        self.name, self.pool, self.engine = name, pool, engine
        self._clock = clock
        self._timeline = timeline
        self._calls: deque[tuple[str, Callable[[Any], None]]] = deque()
        self._turn_at: float | None = None
        self._free_at = self._born = timeline.now
        self._busy_seconds = 0.0
        self.draining = False
        self.deliver: Callable[[Replica, Event], None] = lambda replica, event: None

    def call(self, request_id: str, function: Callable[[Any], None]) -> None:
        """Run `function(engine)` between two steps. What it raises ends the request."""
        self._calls.append((request_id, function))
        self.wake(self._timeline.now)

    def wake(self, moment: float) -> None:
        """There is something to do at `moment`."""
        moment = max(moment, self._free_at, self._timeline.now)
        if self._turn_at is None or moment < self._turn_at:
            self._turn_at = moment
            self._timeline.at(moment, partial(self._turn, moment))

    def stats(self) -> ReplicaStats:
        self._clock.set(self._timeline.now)
        return replace(self.engine.stats(), replica=self.name, pool=self.pool)

    def account(self) -> Machine:
        stats = self.engine.stats()
        return Machine(
            name=self.name,
            pool=self.pool,
            seconds=self._timeline.now - self._born,
            busy_seconds=self._busy_seconds,
            steps=stats.steps,
            tokens=stats.tokens,
            drafted=stats.drafted,
            verified=stats.verified,
            accepted=stats.accepted,
            moved_bytes=stats.moved_bytes,
        )

    def _turn(self, moment: float) -> None:
        if moment != self._turn_at:
            return  # an earlier one has come meanwhile
        self._turn_at = None
        self._clock.set(moment)
        events: list[Event] = []
        while self._calls:
            request_id, function = self._calls.popleft()
            try:
                function(self.engine)
            except SparkpoolError as error:
                events.append(RequestEnded(request_id=request_id, error=error))
        events += self.engine.step()
        self._free_at = self._clock.now()
        self._busy_seconds += self._free_at - moment
        for event in events:
            self._timeline.at(self._free_at, partial(self.deliver, self, event))
        deadline = self.engine.next_deadline()
        if deadline is not None:
            self.wake(deadline)


class Workshop:
    """Makes replicas that can hear each other."""

    def __init__(self, timeline: Timeline, message_seconds: float, domain_of: Callable[[str], str], seed: int) -> None:
        self._timeline = timeline
        self._wire = Wire(message_seconds)
        self._domain_of = domain_of
        self._seed = seed

    def prefill(self, name: str, kit: Kit, config: PrefillConfig) -> Replica:
        clock, pages = self._clock(), _pages(kit)
        transfer = self._transfer(name, kit, clock)
        engine = self._prefiller(kit, config, clock, pages, transfer)
        engine.warm_up()
        return self._joined(name, "prefill", engine, clock, transfer)

    def decode(self, name: str, pool: str, kit: Kit, config: DecodeConfig) -> Replica:
        clock, pages = self._clock(), _pages(kit)
        transfer = self._transfer(name, kit, clock)
        rounds = SimulatedStepRunner(kit.acceptance if config.drafting else None, self._domain_of, self._seed)
        decoder = Decoder(
            pages=pages,
            runner=rounds,
            pace=ModelledPace(kit.step_times, clock, clock.advance),
            planner=planner_of(config, kit.step_times, rounds.block_length),
            recorder=NoRecorder(),
            transfer=transfer,
            clock=clock,
            text=NoText(),  # type: ignore[arg-type]
            config=config,
            poll_seconds=POLL_SECONDS,
            fingerprint=FINGERPRINT,
            drafter_fingerprint=None,
            eos_token_ids=(),
        )
        if not config.local_chunk_tokens:
            return self._joined(name, pool, decoder, clock, transfer)
        local = PrefillConfig(
            chunk_tokens=config.local_chunk_tokens, max_requests=config.max_requests, max_waiting=config.max_waiting
        )
        nobody = DrawnTransfer(f"{name}-local", kit.layout, self._wire, kit.link, clock)
        prefiller = self._prefiller(kit, local, clock, pages, nobody, decoder.spare_tokens)
        prefiller.warm_up()
        return self._joined(name, pool, ColocatedEngine(pages, prefiller, decoder), clock, transfer)

    def _clock(self) -> ReplicaClock:
        return ReplicaClock(self._timeline.now)

    def _transfer(self, name: str, kit: Kit, clock: ReplicaClock) -> DrawnTransfer:
        return DrawnTransfer(name, kit.layout, self._wire, replace(kit.link), clock)

    def _prefiller(
        self,
        kit: Kit,
        config: PrefillConfig,
        clock: ReplicaClock,
        pages: Pages,
        transfer: Any,
        spare_tokens: int = 0,
    ) -> Prefiller:
        return Prefiller(
            pages=pages,
            backend=NoModel(kit.prefill_times, clock),
            drafter=NoDrafter(),
            transfer=transfer,
            clock=clock,
            config=config,
            poll_seconds=POLL_SECONDS,
            fingerprint=FINGERPRINT,
            drafter_fingerprint=None,
            eos_token_ids=(),
            spare_tokens=spare_tokens,
        )

    def _joined(self, name: str, pool: str, engine: Engine, clock: ReplicaClock, transfer: DrawnTransfer) -> Replica:
        replica = Replica(name, pool, engine, clock, self._timeline)
        transfer.wake = replica.wake
        return replica


def _pages(kit: Kit) -> Pages:
    return Pages(kit.layout, NoStore(kit.layout, kit.num_pages), kit.prefix_caching)  # type: ignore[arg-type]
