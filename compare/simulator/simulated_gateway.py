"""The gateway in virtual time: as cluster/serving/gateway.py, it performs what policy/journey.py decides."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller

from compare.simulator.outcome import End, Machine, Served, SimulationResult
from compare.simulator.replica import Replica, VirtualWorld
from compare.simulator.scaling import SimulatedAutoscaler
from compare.simulator.system import System
from compare.simulator.virtual import SimulatedNetwork, Timeline
from compare.simulator.workload import Arrival, Workload, tokens_of
from engine.errors import Overloaded, Unavailable
from engine.types import Event, Request, RequestEnded, Sampling, StopRules
from local.policies import initial_replicas, routing_rules
from policy.admit import RetryBudget
from policy.board import PREFILL, Board
from policy.journey import (
    Begin,
    CancelAttempt,
    ChooseReplicas,
    DeadlinePassed,
    Decode,
    Fail,
    Finish,
    JourneyEvent,
    Prefill,
    RetryPolicy,
    Routed,
    Serve,
    Wait,
    Waited,
    advance,
)
from policy.load import FrontLoad, RecentAnswers
from policy.request_state import Phase, RequestState

FRESH_SECONDS = 0.25  # as often as cluster/serving/board.py asks
LEAVE_SECONDS = 1.0  # how often one that drains is looked at


@dataclass(eq=False)
class SimulatedRequest:
    """A request of the workload. `sent_to` are the replicas that have its current attempt."""

    arrival: Arrival
    index: int
    state: RequestState
    deadline: int | None = None
    counted: ExitStack = field(default_factory=ExitStack)
    sent_to: list[Replica] = field(default_factory=list)


class SimulatedGateway:
    """All of one simulation."""

    def __init__(self, system: System, workload: Workload, seed: int, concurrency: int | None) -> None:
        self._system, self._config = system, system.config
        self._workload, self._concurrency = workload, concurrency
        self._timeline = Timeline()
        self._domains: list[str] = []
        network = SimulatedNetwork(system.message_seconds)
        self._world = VirtualWorld(self._timeline, network, self._domains, seed)
        config = system.config
        self._board = Board(routing_rules(config))
        self._asked_at = float("-inf")
        self._replicas: dict[str, Replica] = {}
        self._numbers = 0
        self._gone: list[Machine] = []
        gateway = config.gateway
        self._max_ongoing = gateway.replicas * gateway.max_ongoing
        self._retries = RetryPolicy(gateway.retries, RetryBudget(self._max_ongoing))
        self._recent = RecentAnswers(lambda: self.now)
        self._attempts: dict[str, SimulatedRequest] = {}
        self._queued: deque[SimulatedRequest] = deque()
        self._ongoing = 0
        self._served: dict[int, Served] = {}
        self._next = 0
        self._scale = SimulatedAutoscaler(self) if config.scaled else None

    def run(self) -> SimulationResult:
        for pool, count in initial_replicas(self._config).items():
            for _ in range(count):
                self.start(pool)
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
        """Return the replicas of a pool that take requests."""
        return [replica for replica in self._replicas.values() if replica.pool == pool and not replica.draining]

    def load(self, ttft_percentile: float) -> FrontLoad:
        """Return the load as the last seconds' answers show it."""
        return self._recent.load(ttft_percentile)

    def start(self, pool: str) -> None:
        """Start one more replica of a pool."""
        name = f"{pool}-{self._numbers}"
        self._numbers += 1
        replica = Replica(name, pool, self._config.pools[pool], self._system.pools[pool], self._world)
        replica.deliver = self._deliver
        self._replicas[name] = replica
        self._asked_at = float("-inf")

    def stop(self, replica: Replica) -> None:
        """Send the replica no more requests, and remove it when it has finished those it has."""
        replica.draining = True
        self._asked_at = float("-inf")
        self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        stats = replica.stats()
        if stats.waiting or stats.running or stats.leases.held:
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
        one = SimulatedRequest(arrival, index, RequestState(request, self.now))
        if self._ongoing < self._max_ongoing:
            self._begin(one)
        elif len(self._queued) < self._config.gateway.max_queued:
            self._queued.append(one)
        else:
            self._record(one, End.REFUSED)

    def _begin(self, one: SimulatedRequest) -> None:
        self._ongoing += 1
        self._refresh()
        try:
            one.state.pool = self._board.pool(one.state.request, tier=one.arrival.tier)
            self._board.admit(one.state.attempt(self.now))
        except Overloaded:
            self._ongoing -= 1
            self._record(one, End.REFUSED)
            return
        deadline = max(self.now, one.state.deadline)
        one.deadline = self._timeline.at(deadline, partial(self._feed, one, DeadlinePassed()))
        self._feed(one, Begin())

    def _feed(self, one: SimulatedRequest, event: JourneyEvent) -> None:
        """Perform what follows from an event."""
        pool = one.state.pool
        for action in advance(one.state, event, self.now, self._retries):
            match action:
                case ChooseReplicas(request):
                    self._refresh()
                    self._feed(one, Routed(self._board.local(pool, request)))
                case Prefill(request):
                    replicas = one.counted.enter_context(self._board.prefilling(request))
                    self._send(one, replicas, PREFILL, methodcaller("add", request))
                case Serve(request, replicas):
                    one.counted.enter_context(self._board.serving(replicas, request))
                    self._send(one, replicas, pool, methodcaller("serve", request))
                case Decode(request, handoff):
                    one.counted.close()
                    replicas = one.counted.enter_context(self._board.decoding(pool, request))
                    self._send(one, replicas, pool, methodcaller("add", request, handoff))
                case CancelAttempt(request_id):
                    for replica in one.sent_to:
                        self._call(replica, request_id, methodcaller("cancel", request_id))
                    self._close(one)
                case Wait(seconds):
                    self._timeline.at(self.now + seconds, partial(self._feed, one, Waited()))
                case Finish():
                    self._recent.add(one.state)
                    if one.state.handoff_seconds is not None:
                        self._board.handed_over(one.state.handoff_seconds)
                    self._end(one, End.DONE)
                case Fail(error):
                    self._end(one, End.REFUSED if isinstance(error, Overloaded) else End.FAILED)

    def _send(
        self, one: SimulatedRequest, preferred_replicas: Sequence[str], pool: str, call: Callable[..., None]
    ) -> None:
        """Send to the first preferred replica that is still there, or else to the replica with the fewest requests."""
        self._attempts[one.state.attempt_id] = one
        known = (self._replicas[name] for name in preferred_replicas if name in self._replicas)
        replica = next((replica for replica in known if not replica.draining), None)
        if replica is None:
            alive = self.replicas(pool)
            if not alive:
                self._feed(one, RequestEnded(request_id="", error=Unavailable(f"no replica of {pool} is running")))
                return
            replica = min(alive, key=lambda replica: replica.stats().running + replica.stats().waiting)
        one.sent_to.append(replica)
        self._call(replica, one.state.attempt_id, call)

    def _call(self, replica: Replica, request_id: str, call: Callable[..., None]) -> None:
        self._timeline.at(self.now + self._system.hop_seconds, partial(replica.call, request_id, call))

    def _deliver(self, replica: Replica, event: Event) -> None:
        """An event has left a replica; a hop later it is here."""
        self._timeline.at(self.now + self._system.hop_seconds, partial(self._hear, replica, event))

    def _hear(self, replica: Replica, event: Event) -> None:
        one = self._attempts.get(event.request_id)
        if one is None:
            return  # of an attempt that is over
        if isinstance(event, RequestEnded) and replica.pool == PREFILL and one.state.phase is Phase.DECODING:
            return  # the prefill stream ends after its handoff
        self._feed(one, event)

    def _close(self, one: SimulatedRequest) -> None:
        """Forget the current attempt."""
        one.counted.close()
        one.sent_to.clear()
        self._attempts.pop(one.state.attempt_id, None)

    def _end(self, one: SimulatedRequest, end: End) -> None:
        self._close(one)
        assert one.deadline is not None
        self._timeline.cancel(one.deadline)
        self._ongoing -= 1
        self._record(one, end)
        if self._queued:
            self._begin(self._queued.popleft())

    def _record(self, one: SimulatedRequest, end: End) -> None:
        arrival, state = one.arrival, one.state
        self._served[one.index] = Served(
            at=state.arrived_at,
            ended=self.now,
            end=end,
            first=math.nan if state.first_token_at is None else state.first_token_at,
            input_tokens=arrival.input_tokens,
            tokens=len(state.tokens),
            cached_tokens=state.cached_tokens,
            preemptions=state.preemptions,
            pool=state.pool,
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
