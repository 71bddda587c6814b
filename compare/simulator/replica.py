"""One simulated replica: a real engine on a virtual clock, made of the parts in compare/simulator/virtual.py."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from compare.simulator.acceptance import AcceptanceModel
from compare.simulator.outcome import Machine
from compare.simulator.virtual import (
    EmptyPageStore,
    EmptyText,
    PrefillTimes,
    SimulatedBackend,
    SimulatedNetwork,
    SimulatedStepRunner,
    SimulatedTransfer,
    Timeline,
    VirtualClock,
)
from decode.record import NoRecorder
from engine.config import DecodeConfig, PrefillConfig
from engine.drafters import NoDrafter
from engine.engine import Engine
from engine.errors import SparkpoolError
from engine.pages import CacheLayout, Pages
from engine.stats import ReplicaStats
from engine.steptime import StepTimes
from engine.types import Event, RequestEnded
from hardware.link import Link
from hardware.pace import ModelledPace
from local.assemble import DecodeParts, assemble

POLL_SECONDS = 0.001
FINGERPRINT = {"model": "simulated"}


@dataclass(frozen=True, kw_only=True)
class SimulatedPool:
    """The hardware of one pool's replicas: pages of each group, step times of their device, a link for handoffs, and
    how often drafts are accepted (None: no drafting)."""

    layout: CacheLayout
    num_pages: dict[str, int]
    prefill_times: PrefillTimes
    step_times: StepTimes
    link: Link
    acceptance: AcceptanceModel | None = None


@dataclass(frozen=True)
class VirtualWorld:
    """The state that all replicas of one simulation share. `domains` are those of the requests, by index."""

    timeline: Timeline
    network: SimulatedNetwork
    domains: Sequence[str]
    seed: int

    def domain_of(self, request_id: str) -> str:
        """Return the domain of a request; that of a warm-up's own requests is empty."""
        index = request_id.partition(".")[0]
        return self.domains[int(index)] if index.isdigit() else ""


def simulated_parts(
    name: str,
    section: PrefillConfig | DecodeConfig,
    pool: SimulatedPool,
    world: VirtualWorld,
    clock: VirtualClock,
    wake: Callable[[float], None],
) -> DecodeParts:
    """Return the virtual parts of a replica; one of the prefill pool leaves those of decoding unused."""
    return DecodeParts(
        pages=Pages(pool.layout, EmptyPageStore(pool.layout, pool.num_pages), section.prefix_caching),
        backend=SimulatedBackend(pool.prefill_times, clock),
        drafter=NoDrafter(),
        transfer=SimulatedTransfer(name, world.network, replace(pool.link), clock, wake),
        clock=clock,
        poll_seconds=POLL_SECONDS,
        fingerprint=FINGERPRINT,
        step_runner=SimulatedStepRunner(pool.acceptance if section.drafting else None, world.domain_of, world.seed),
        step_times=pool.step_times,
        pace=ModelledPace(pool.step_times, clock, clock.advance),
        recorder=NoRecorder(),
        text=EmptyText(),
    )


class Replica:
    """Runs its engine as the cluster's thread does (cluster/serving/engine_thread.py): calls between steps, steps while
    the engine has something to do, sleep until its deadline otherwise."""

    def __init__(
        self,
        name: str,
        pool: str,
        section: PrefillConfig | DecodeConfig,
        made_of: SimulatedPool,
        world: VirtualWorld,
    ) -> None:
        self.name, self.pool = name, pool
        self._timeline = world.timeline
        self._clock = VirtualClock(world.timeline.now)
        self._calls: deque[tuple[str, Callable[[Engine], None]]] = deque()
        self._turn_at: float | None = None
        self._free_at = self._born = world.timeline.now
        self._busy_seconds = 0.0
        self.draining = False
        self.deliver: Callable[[Replica, Event], None] = lambda replica, event: None
        self.engine: Engine = assemble(section, simulated_parts(name, section, made_of, world, self._clock, self.wake))
        self.engine.warm_up()

    def call(self, request_id: str, function: Callable[[Engine], None]) -> None:
        """Run `function(engine)` between two steps. What it raises ends the request."""
        self._calls.append((request_id, function))
        self.wake(self._timeline.now)

    def wake(self, moment: float) -> None:
        """Take a step at `moment`, or as soon after it as the engine is free."""
        moment = max(moment, self._free_at, self._timeline.now)
        if self._turn_at is None or moment < self._turn_at:
            self._turn_at = moment
            self._timeline.at(moment, partial(self._turn, moment))

    def stats(self) -> ReplicaStats:
        self._clock.set(self._timeline.now)
        return self.engine.stats().named(self.name, self.pool)

    def account(self) -> Machine:
        stats = self.engine.stats()
        return Machine(
            name=self.name,
            pool=self.pool,
            seconds=self._timeline.now - self._born,
            busy_seconds=self._busy_seconds,
            steps=stats.counters.steps,
            tokens=stats.counters.tokens,
            drafted=stats.counters.drafted,
            verified=stats.counters.verified,
            accepted=stats.counters.accepted,
            moved_bytes=stats.transfers.moved_bytes,
        )

    def _turn(self, moment: float) -> None:
        if moment != self._turn_at:
            return  # an earlier turn has been taken meanwhile
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
