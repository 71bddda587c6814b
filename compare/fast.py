"""A faster simulator of the same cluster: each replica computes whole steps over arrays of requests.

The same as in compare/simulate.py: arrivals, step times, acceptance, admission by `max_requests` and pages, chunked
prefill under one token budget, the link. Simpler, with little effect: a request goes to the replica with the fewest
(where `rank_decode` sends it while all have room and the same speed); a prefill replica caches only what
`Arrival.shared` names and it has computed before; every request of a step has the same number of drafts verified, the
number at which `expected_rate` is highest; no request is preempted, because one only begins where its whole length
fits. Tests compare both simulators on small cases.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np

from compare.fast_replicas import (
    DecodeStepTable,
    FastDecodePool,
    FastDecodeReplica,
    FastPrefillPool,
    FastPrefillReplica,
    WaitingHandoff,
)
from compare.simulator.outcome import End, Machine, Served, SimulationResult
from compare.simulator.workload import Workload
from engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FastSystem:
    """A service of one prefill and one decode pool. `hop_seconds`: between gateway and replica, each way;
    `message_seconds`: between two replicas."""

    prefill: FastPrefillPool
    decode: FastDecodePool
    hop_seconds: float = 0.0
    message_seconds: float = 0.0


def simulate_fast(
    system: FastSystem, workload: Workload, seed: int = 0, concurrency: int | None = None
) -> SimulationResult:
    """Serve a workload, as `simulate` in compare/simulate.py does."""
    return FastSimulation(system, workload, seed, concurrency).run()


ARRIVES, PREFILLED, ANNOUNCED, TURN, DECODED = range(5)


class FastSimulation:
    """One simulation: a heap of events, each of which changes a replica and adds the events that follow."""

    def __init__(self, system: FastSystem, workload: Workload, seed: int, concurrency: int | None) -> None:
        if system.decode.fixed and not system.decode.acceptance:
            raise ConfigError("decode.fixed: drafts are verified, and there is no acceptance")
        self._system, self._arrivals, self._concurrency = system, workload.arrivals, concurrency
        random, steps = np.random.default_rng(seed), DecodeStepTable(system.decode)
        self._prefill = [FastPrefillReplica(system.prefill) for _ in range(system.prefill.replicas)]
        self._decode = [
            FastDecodeReplica(system.decode, steps, random, 2 * system.message_seconds)
            for _ in range(system.decode.replicas)
        ]
        self._moments: list[tuple[float, int, int, int, object]] = []
        self._number = 0
        self._next = 0
        size = len(workload)
        self._at, self._first, self._ended = np.full(size, math.nan), np.full(size, math.nan), np.full(size, math.nan)
        self._cached = np.zeros(size, dtype=np.int64)
        self._context: dict[int, int] = {}
        self._now = 0.0

    def run(self) -> SimulationResult:
        if self._concurrency is None:
            self._push(self._arrivals[0].at, ARRIVES, 0)
        else:
            for _ in range(min(self._concurrency, len(self._arrivals))):
                self._push(0.0, ARRIVES, self._next)
                self._next += 1
        happen = (self._arrive, self._prefilled, self._announced, self._turn, self._decoded)
        while self._moments:
            self._now, _, what, which, rest = heapq.heappop(self._moments)
            happen[what](which, rest)
        return SimulationResult(self._served(), self._machines(), self._now)

    def _push(self, at: float, what: int, which: int, rest: object = None) -> None:
        self._number += 1
        heapq.heappush(self._moments, (at, self._number, what, which, rest))

    def _arrive(self, index: int, _: object) -> None:
        if self._concurrency is None and index + 1 < len(self._arrivals):
            self._push(self._arrivals[index + 1].at, ARRIVES, index + 1)
        self._at[index] = self._now
        arrival = self._arrivals[index]
        which = min(range(len(self._prefill)), key=lambda n: (self._prefill[n].queued_tokens, self._prefill[n].tokens))
        replica = self._prefill[which]
        cached = replica.cached(arrival)
        self._cached[index] = cached
        replica.add(index, arrival, cached)
        if not replica.stepping:
            self._step_prefill(which)

    def _step_prefill(self, which: int) -> None:
        replica = self._prefill[which]
        replica.stepping = bool(replica.queue)
        if replica.queue:
            seconds, done = replica.step()
            replica.free_at = self._now + seconds
            self._push(replica.free_at, PREFILLED, which, done)

    def _prefilled(self, which: int, done: object) -> None:
        """Send the handoffs: a decode replica hears of each two hops later, and reads its pages after that."""
        assert isinstance(done, list)
        moment = self._now + 2 * self._system.hop_seconds
        for index in done:
            target = min(range(len(self._decode)), key=lambda n: self._decode[n].load)
            self._decode[target].coming += 1
            self._push(moment, ANNOUNCED, target, (index, which))
        self._step_prefill(which)

    def _announced(self, which: int, what: object) -> None:
        """Take a handoff. Its first token is sent with the step that runs, or at once if none does."""
        assert isinstance(what, tuple)
        index, source = what
        replica, arrival = self._decode[which], self._arrivals[index]
        replica.coming -= 1
        if replica.stepping:
            replica.first_tokens.append(index)
        else:
            self._send_first(index, self._now)
        if arrival.output_tokens == 1:
            return
        left = arrival.output_tokens - 1
        replica.waiting.append(WaitingHandoff(index, arrival.input_tokens, left, lambda: self._prefill[source].free_at))
        self._context[index] = arrival.input_tokens + left
        if not replica.stepping:
            self._turn(which, None)

    def _turn(self, which: int, _: object) -> None:
        replica = self._decode[which]
        if replica.stepping:
            return  # a step has begun since this event was added
        replica.turn(self._now)
        first_tokens, replica.first_tokens = replica.first_tokens, []
        replica.stepping = replica.count > 0
        if replica.stepping:
            seconds, ended = replica.step()
            self._push(self._now + seconds, DECODED, which, (ended, first_tokens))
            return
        for index in first_tokens:
            self._send_first(index, self._now)
        if replica.next_turn < math.inf:
            self._push(replica.next_turn, TURN, which)

    def _decoded(self, which: int, what: object) -> None:
        assert isinstance(what, tuple)
        positions, first_tokens = what
        for index in first_tokens:
            self._send_first(index, self._now)
        if len(positions):
            ended = self._now + self._system.hop_seconds
            for index in self._decode[which].leave(positions, self._context):
                del self._context[index]
                self._finish(index, ended)
        self._decode[which].stepping = False
        self._turn(which, None)

    def _send_first(self, index: int, now: float) -> None:
        self._first[index] = now + self._system.hop_seconds
        if self._arrivals[index].output_tokens == 1:
            self._finish(index, self._first[index])

    def _finish(self, index: int, ended: float) -> None:
        self._ended[index] = ended
        if self._concurrency is not None and self._next < len(self._arrivals):
            self._push(ended, ARRIVES, self._next)
            self._next += 1

    def _served(self) -> list[Served]:
        return [
            Served(
                at=at,
                ended=ended,
                end=End.DONE,
                first=first,
                input_tokens=arrival.input_tokens,
                tokens=arrival.output_tokens,
                cached_tokens=cached,
                domain=arrival.domain,
                tier=arrival.tier,
            )
            for arrival, at, first, ended, cached in zip(
                self._arrivals,
                self._at.tolist(),
                self._first.tolist(),
                self._ended.tolist(),
                self._cached.tolist(),
                strict=True,
            )
        ]

    def _machines(self) -> list[Machine]:
        prefill = [self._account(f"prefill-{n}", "prefill", one) for n, one in enumerate(self._prefill)]
        decode = [
            self._account(
                f"decode-{n}", "decode", one, drafted=one.drafted, verified=one.verified, accepted=one.accepted
            )
            for n, one in enumerate(self._decode)
        ]
        return [*prefill, *decode]

    def _account(self, name: str, pool: str, one: FastPrefillReplica | FastDecodeReplica, **drafts: int) -> Machine:
        return Machine(
            name=name,
            pool=pool,
            seconds=self._now,
            busy_seconds=one.busy_seconds,
            steps=one.steps,
            tokens=one.tokens,
            **drafts,
        )
