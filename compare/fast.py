"""The same cluster, faster: whole steps of a replica at once, over arrays of requests instead of objects.

What is the same as in compare/simulate.py: arrivals, step times, acceptance, the admission of requests by seats and
bytes of cache, chunked prefill under one token budget, the link. What is simpler, and why it changes little: a request
goes to the replica with fewest (which is where `rank_decode` sends it while all have room and measure the same);
prefill replicas share no prefixes but what `Arrival.shared` says was sent to that very replica before; every request of
a step has as many drafts verified, as many as `expected_rate` finds worth most (requests of one domain survive alike);
nobody is preempted, because a request only begins where all that it will be fits. Tests compare both on small cases.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np

from compare.fast_replicas import DecodeReplica, Decoding, Entry, Plans, Prefilling, PrefillReplica
from compare.simulator.outcome import End, Machine, Served, SimulationResult
from compare.simulator.workload import Workload
from engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FastSystem:
    prefill: Prefilling
    decode: Decoding
    hop_seconds: float = 0.0
    message_seconds: float = 0.0


def simulate_fast(
    system: FastSystem, workload: Workload, seed: int = 0, concurrency: int | None = None
) -> SimulationResult:
    """As compare/simulate.py: simulate."""
    return Run(system, workload, seed, concurrency).run()


ARRIVES, PREFILLED, ANNOUNCED, TURN, DECODED = range(5)


class Run:
    """One simulation."""

    def __init__(self, system: FastSystem, workload: Workload, seed: int, concurrency: int | None) -> None:
        if system.decode.fixed and not system.decode.acceptance:
            raise ConfigError("decode.fixed: drafts without an acceptance")
        self._system, self._arrivals, self._concurrency = system, workload.arrivals, concurrency
        random, plans = np.random.default_rng(seed), Plans(system.decode)
        self._prefill = [PrefillReplica(system.prefill) for _ in range(system.prefill.replicas)]
        self._decode = [
            DecodeReplica(system.decode, plans, random, 2 * system.message_seconds)
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
        """Handoffs leave: decode hears of each two hops later, and its pages come after that."""
        assert isinstance(done, list)
        moment = self._now + 2 * self._system.hop_seconds
        for index in done:
            target = min(range(len(self._decode)), key=lambda n: self._decode[n].load)
            self._decode[target].coming += 1
            self._push(moment, ANNOUNCED, target, (index, which))
        self._step_prefill(which)

    def _announced(self, which: int, what: object) -> None:
        """The first token goes out with the next step, at once if there is none."""
        assert isinstance(what, tuple)
        index, source = what
        replica, arrival = self._decode[which], self._arrivals[index]
        replica.coming -= 1
        if replica.stepping:
            replica.news.append(index)
        else:
            self._tell(index, self._now)
        if arrival.output_tokens == 1:
            return
        left = arrival.output_tokens - 1
        replica.waiting.append(Entry(index, arrival.input_tokens, left, lambda: self._prefill[source].free_at))
        self._context[index] = arrival.input_tokens + left
        if not replica.stepping:
            self._turn(which, None)

    def _turn(self, which: int, _: object) -> None:
        replica = self._decode[which]
        if replica.stepping:
            return  # a step has begun since this was wanted
        replica.turn(self._now)
        told, replica.news = replica.news, []
        replica.stepping = replica.count > 0
        if replica.stepping:
            seconds, places = replica.step()
            self._push(self._now + seconds, DECODED, which, (places, told))
            return
        for index in told:
            self._tell(index, self._now)
        if replica.next_turn < math.inf:
            self._push(replica.next_turn, TURN, which)

    def _decoded(self, which: int, what: object) -> None:
        assert isinstance(what, tuple)
        places, told = what
        for index in told:
            self._tell(index, self._now)
        if len(places):
            ended = self._now + self._system.hop_seconds
            for index in self._decode[which].leave(places, self._context):
                del self._context[index]
                self._finish(index, ended)
        self._decode[which].stepping = False
        self._turn(which, None)

    def _tell(self, index: int, now: float) -> None:
        """The first token has left decode."""
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

    def _account(self, name: str, pool: str, one: PrefillReplica | DecodeReplica, **drafts: int) -> Machine:
        return Machine(
            name=name,
            pool=pool,
            seconds=self._now,
            busy_seconds=one.busy_seconds,
            steps=one.steps,
            tokens=one.tokens,
            **drafts,
        )
