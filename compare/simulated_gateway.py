"""Requests on their way in virtual time: what cluster/gateway.py does, with its waiting turned into events."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller

from compare.replica import Replica, Workshop
from compare.scaling import Scale
from compare.simulator.outcome import End, Machine, Served, SimulationResult
from compare.simulator.workload import Arrival, Workload, tokens_of
from compare.system import System
from compare.virtual import Timeline
from engine.errors import Overloaded, Preempted, SparkpoolError, Unavailable
from engine.types import Chunk, Event, Handoff, Request, RequestEnded, Sampling, StopRules
from local.rules import rules
from policy.board import PREFILL, Board

FRESH_SECONDS = 0.25  # as often as cluster/board.py asks
LEAVE_SECONDS = 1.0  # how often one that drains is looked at
RETRY_SECONDS = 0.05  # as cluster/gateway.py
RECENT_SECONDS = 10.0  # the answers that scaling goes by


@dataclass(eq=False)
class Journey:
    """One request on its way, as cluster/gateway.py: Journey."""

    arrival: Arrival
    index: int
    request: Request
    at: float
    pool: str = ""
    attempts: int = 0
    losses: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    first: float | None = None
    handed_over: bool = False
    local: bool = False
    deadline: int | None = None
    counted: ExitStack = field(default_factory=ExitStack)

    def attempt(self, now: float) -> Request:
        """The request as a pool sees it now."""
        age = now - self.at
        resumed = self.request.resumed(tuple(self.tokens))
        return replace(
            resumed,
            id=f"{self.index}.{self.attempts}",
            age_seconds=age,
            seconds_left=self.request.seconds_left - age,
        )


class SimulatedGateway:
    """All of one simulation."""

    def __init__(self, system: System, workload: Workload, seed: int, concurrency: int | None) -> None:
        self._system, self._config = system, system.config
        self._workload, self._concurrency = workload, concurrency
        self._timeline = Timeline()
        self._domains: list[str] = []
        self._workshop = Workshop(
            self._timeline, system.message_seconds, lambda name: self._domains[int(name.partition(".")[0])], seed
        )
        config = system.config
        self._board = Board(rules(config))
        self._asked_at = float("-inf")
        self._replicas: dict[str, Replica] = {}
        self._numbers = 0
        self._gone: list[Machine] = []
        self._journeys: dict[str, Journey] = {}
        self._queued: deque[Journey] = deque()
        self._ongoing = 0
        self._served: dict[int, Served] = {}
        self._next = 0
        self._scale = Scale(self) if config.scaled else None

    def run(self) -> SimulationResult:
        for pool, section in self._config.sections.items():
            scale = section.scale
            for _ in range(scale.min_replicas if scale else section.replicas):
                self.start(pool.removeprefix("decode."))
        if self._concurrency is None:
            for arrival in self._workload:
                self._timeline.at(arrival.at, self._arrive)
        else:
            for _ in range(min(self._concurrency, len(self._workload))):
                self._timeline.at(0.0, self._arrive)
        if self._scale is not None:
            self._timeline.at(0.0, self._scale.tick)
        self._timeline.run()
        for replica in self._replicas.values():
            replica.engine.assert_consistent()
        machines = [*self._gone, *(replica.account() for replica in self._replicas.values())]
        served = [self._served[index] for index in sorted(self._served)]
        scaled = tuple(self._scale.history) if self._scale else ()
        return SimulationResult(served, machines, self._timeline.now, scaled)

    @property
    def now(self) -> float:
        return self._timeline.now

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    @property
    def system(self) -> System:
        return self._system

    @property
    def finished(self) -> bool:
        return len(self._served) == len(self._workload)

    def replicas(self, pool: str) -> list[Replica]:
        """Those that take requests."""
        return [replica for replica in self._replicas.values() if replica.pool == pool and not replica.draining]

    def recent(self) -> list[Served]:
        """Answers that ended lately."""
        since = self.now - RECENT_SECONDS
        return [one for one in self._served.values() if one.end == End.DONE and one.ended >= since]

    def start(self, pool: str) -> None:
        """One replica more of a pool."""
        name, kit = f"{pool}-{self._numbers}", self._system.kits[pool]
        self._numbers += 1
        if pool == PREFILL:
            replica = self._workshop.prefill(name, kit, self._config.prefill)
        else:
            replica = self._workshop.decode(name, pool, kit, self._config.decode[pool])
        replica.deliver = self._deliver
        self._replicas[name] = replica
        self._asked_at = float("-inf")

    def stop(self, replica: Replica) -> None:
        """It takes no more requests, and goes when it has finished those it has."""
        replica.draining = True
        self._asked_at = float("-inf")
        self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        stats = replica.stats()
        if stats.waiting or stats.running or stats.leases_held:
            self._timeline.at(self.now + LEAVE_SECONDS, partial(self._leave, replica))
            return
        replica.engine.assert_consistent()
        self._gone.append(replica.account())
        del self._replicas[replica.name]

    def _arrive(self) -> None:
        if self._next == len(self._workload):
            return  # another took the last one at this very moment
        index, arrival = self._next, self._workload.arrivals[self._next]
        self._next += 1
        self._domains.append(arrival.domain)
        request = Request(
            id=str(index),
            prompt=tokens_of(arrival, index),
            sampling=Sampling(),
            stop=StopRules(max_tokens=arrival.output_tokens, ignore_eos=True),
            seconds_left=self._config.gateway.request_seconds,
        )
        journey = Journey(arrival, index, request, self.now)
        gateway = self._config.gateway
        if self._ongoing < gateway.replicas * gateway.max_ongoing:
            self._begin(journey)
        elif len(self._queued) < gateway.max_queued:
            self._queued.append(journey)
        else:
            self._end(journey, End.REFUSED)

    def _begin(self, journey: Journey) -> None:
        self._ongoing += 1
        self._refresh()
        try:
            journey.pool = self._board.pool(journey.request, tier=journey.arrival.tier)
            self._board.admit(journey.attempt(self.now))
        except Overloaded:
            self._ongoing -= 1
            self._end(journey, End.REFUSED)
            return
        deadline = journey.at + journey.request.seconds_left
        journey.deadline = self._timeline.at(max(self.now, deadline), partial(self._late, journey))
        self._attempt(journey)

    def _attempt(self, journey: Journey) -> None:
        journey.attempts += 1
        journey.handed_over = False
        self._refresh()
        request = journey.attempt(self.now)
        self._journeys[request.id] = journey
        preferred_replicas = self._board.local(journey.pool, request)
        journey.local = bool(preferred_replicas)
        if preferred_replicas:
            journey.counted.enter_context(self._board.serving(preferred_replicas, request))
            self._send(preferred_replicas, journey.pool, request, methodcaller("serve", request))
        else:
            preferred_replicas = journey.counted.enter_context(self._board.prefilling(request))
            self._send(preferred_replicas, PREFILL, request, methodcaller("add", request))

    def _send(self, preferred_replicas: Sequence[str], pool: str, request: Request, call: Callable[..., None]) -> None:
        """To the first wish that is still there, or else to the replica with least to do."""
        wished = (self._replicas[name] for name in preferred_replicas if name in self._replicas)
        replica = next((one for one in wished if not one.draining), None)
        if replica is None:
            alive = self.replicas(pool)
            if not alive:
                self._lost(self._journeys.pop(request.id), Unavailable(f"no replica of {pool} is running"))
                return
            replica = min(alive, key=lambda one: one.stats().running + one.stats().waiting)
        chosen = replica
        self._timeline.at(self.now + self._system.hop_seconds, partial(chosen.call, request.id, call))

    def _deliver(self, replica: Replica, event: Event) -> None:
        """An event has left a replica; a hop later it is here."""
        self._timeline.at(self.now + self._system.hop_seconds, partial(self._hear, replica, event))

    def _hear(self, replica: Replica, event: Event) -> None:
        journey = self._journeys.get(event.request_id)
        if journey is None or event.request_id != f"{journey.index}.{journey.attempts}":
            return  # of an attempt that is over
        if isinstance(event, Handoff):
            self._handed_over(journey, event)
        elif isinstance(event, Chunk):
            journey.tokens += event.tokens
            journey.first = self.now if journey.first is None else journey.first
            if event.finish is not None:
                if event.timings is not None and not journey.local and journey.attempts == 1:
                    timings = event.timings
                    self._board.handed_over(
                        2 * self._system.hop_seconds + timings.wait_seconds + timings.transfer_seconds
                    )
                self._finish(journey, End.DONE)
        elif replica.pool != PREFILL or not journey.handed_over:
            assert isinstance(event, RequestEnded)
            self._lost(journey, event.error or Unavailable("the stream ended early"))

    def _handed_over(self, journey: Journey, handoff: Handoff) -> None:
        if journey.attempts == 1:
            journey.cached_tokens = handoff.cached_tokens
        journey.handed_over = True
        if journey.local:
            return
        journey.counted.close()
        request = journey.attempt(self.now)
        preferred_replicas = journey.counted.enter_context(self._board.decoding(journey.pool, request))
        self._send(preferred_replicas, journey.pool, request, methodcaller("add", request, handoff))

    def _lost(self, journey: Journey, error: SparkpoolError) -> None:
        """Preempted requests go round again, lost ones a few times; what cannot be served fails."""
        journey.counted.close()
        if isinstance(error, Preempted):
            journey.preemptions += 1
            self._attempt(journey)
        elif isinstance(error, Unavailable) and journey.losses < self._config.gateway.retries:
            journey.losses += 1
            self._timeline.at(self.now + RETRY_SECONDS * 2 ** (journey.losses - 1), partial(self._attempt, journey))
        elif isinstance(error, Overloaded):
            self._finish(journey, End.REFUSED)
        else:
            self._finish(journey, End.FAILED)

    def _late(self, journey: Journey) -> None:
        if journey.index not in self._served:
            for replica in self._replicas.values():
                name = f"{journey.index}.{journey.attempts}"
                replica.call(name, methodcaller("cancel", name))
            self._finish(journey, End.FAILED)

    def _finish(self, journey: Journey, end: End) -> None:
        journey.counted.close()
        self._journeys.pop(f"{journey.index}.{journey.attempts}", None)
        assert journey.deadline is not None
        self._timeline.cancel(journey.deadline)
        self._ongoing -= 1
        self._end(journey, end)
        if self._queued:
            self._begin(self._queued.popleft())

    def _end(self, journey: Journey, end: End) -> None:
        arrival = journey.arrival
        self._served[journey.index] = Served(
            at=journey.at,
            ended=self.now,
            end=end,
            first=math.nan if journey.first is None else journey.first,
            input_tokens=arrival.input_tokens,
            tokens=len(journey.tokens),
            cached_tokens=journey.cached_tokens,
            preemptions=journey.preemptions,
            pool=journey.pool,
            domain=arrival.domain,
            tier=arrival.tier,
        )
        if self._concurrency is not None and self._next < len(self._workload):
            self._timeline.at(self.now, self._arrive)

    def _refresh(self) -> None:
        if self.now - self._asked_at > FRESH_SECONDS:
            self._asked_at = self.now
            alive = [replica.stats() for replica in self._replicas.values() if not replica.draining]
            self._board.heard(alive, self._board.sent())
