"""The board keeps the last statistics of every replica, corrected by the requests that this gateway sent there since.

Routing and admission decide by it. Requests that other gateways send show only in a replica's next statistics.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.errors import BadRequest, Overloaded
from engine.mean import ExponentialMean
from engine.stats import PageCounts, ReplicaStats
from engine.types import Request
from policy.admit import refusal
from policy.prefix import PrefixIndex
from policy.route import PoolPolicy, Ranked, choose_pool, rank_decode, rank_local, rank_prefill

EMA_WEIGHT = 0.1  # the share of the newest handoff in the mean
PREFILL = "prefill"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings of routing and admission.

    `pools`: the decode pools in the order of the configuration. `tiers`: the decode pool of each service tier.
    `pool_policy` and `target_rate` (tokens per second) choose the pool of a request that names neither pool nor tier.
    `max_queued_seconds`: seconds of prefill work that may wait.
    """

    pools: tuple[str, ...]
    page_tokens: int
    tiers: Mapping[str, str] = field(default_factory=dict)
    pool_policy: PoolPolicy = PoolPolicy.FIRST
    target_rate: float | None = None
    max_queued_seconds: float = float("inf")


@dataclass
class Sent:
    """Counts the requests that this gateway has at a replica, their tokens, and by priority the prompt tokens that the
    replica has to compute for them."""

    requests: int = 0
    tokens: int = 0
    queued: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def change(self, sign: int, tokens: int, queued_tokens: int, priority: int) -> None:
        self.requests += sign
        self.tokens += sign * tokens
        self.queued[priority] += sign * queued_tokens

    def copy(self) -> "Sent":
        return Sent(self.requests, self.tokens, defaultdict(int, self.queued))


class Board:
    """Estimates the present state of every replica, and ranks the replicas for a request."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._prefixes = PrefixIndex(rules.page_tokens)
        self._stats: list[ReplicaStats] = []
        self._alive: set[str] = set()
        self._sent: dict[str, Sent] = defaultdict(Sent)
        self._sent_then: dict[str, Sent] = {}
        self._handoff_seconds = ExponentialMean(EMA_WEIGHT)

    def sent(self) -> dict[str, Sent]:
        """Return what each replica has from this gateway; `heard` takes it with the statistics of the same moment."""
        return {replica: sent.copy() for replica, sent in self._sent.items()}

    def heard(self, stats: list[ReplicaStats], then: dict[str, Sent]) -> None:
        """Take the statistics of all live replicas, gathered when they had `then` from this gateway."""
        self._stats, self._sent_then = stats, then
        alive = {one.name for one in stats}
        if alive != self._alive:
            self._prefixes.keep_only(alive)
        self._alive = alive
        for gone in [replica for replica, sent in self._sent.items() if replica not in alive and not sent.requests]:
            del self._sent[gone]

    def admit(self, request: Request) -> None:
        """Raise Overloaded, with the seconds until a retry, if the request would be late or the queue is full."""
        refused = refusal(
            self._rank_prefill(request),
            self._replicas(PREFILL),
            request.priority,
            request.seconds_left,
            self._rules.max_queued_seconds,
        )
        if refused is not None:
            raise Overloaded(refused.reason, retry_seconds=refused.retry_seconds)

    def pool(self, request: Request, named: str = "", tier: str = "") -> str:
        """Return the decode pool of a request: `named`, that of its service tier, or the pool policy's choice.

        Raises BadRequest for a pool or a tier that does not exist.
        """
        if tier and not named:
            if tier not in self._rules.tiers:
                known = ", ".join(self._rules.tiers) or "none (gateway.tiers)"
                raise BadRequest("service_tier", f"unknown service tier {tier!r}; the tiers are: {known}")
            named = self._rules.tiers[tier]
        if named and named not in self._rules.pools:
            raise BadRequest("decode_pool", f"unknown pool {named!r}; the pools are: {', '.join(self._rules.pools)}")
        if named or len(self._rules.pools) == 1:
            return named or self._rules.pools[0]
        ranked = {pool: self._rank_decode(pool, request) for pool in self._rules.pools}
        return choose_pool(self._rules.pool_policy, ranked, self._rules.target_rate) or self._rules.pools[0]

    def local(self, pool: str, request: Request) -> tuple[str, ...]:
        """Return the decode replicas that should prefill the request themselves, best first; none if a handoff is
        cheaper, or while no handoff has been measured."""
        if self._handoff_seconds.value is None:
            return ()
        known = self._known(request)
        ranked = rank_local(self._replicas(pool), request.num_tokens, known, self._rules.page_tokens, request.priority)
        remote = self._rank_prefill(request)
        if not ranked or not remote or ranked[0].expected > remote[0].expected + self._handoff_seconds.value:
            return ()
        return tuple(one.replica for one in ranked)

    def handed_over(self, seconds: float) -> None:
        """Record the duration of a handoff, from the end of prefill until the decode replica had the pages."""
        self._handoff_seconds.observe(seconds)

    @contextlib.contextmanager
    def prefilling(self, request: Request) -> Iterator[tuple[str, ...]]:
        """Yield the prefill replicas for a request, best first. It counts as queued at the first in this block."""
        preferred_replicas = tuple(one.replica for one in self._rank_prefill(request))
        best = preferred_replicas[0] if preferred_replicas else ""
        tokens = request.num_tokens - self._known(request).get(best, 0)
        if best:
            self._prefixes.note(best, request.tokens, request.cache_salt)
        with self._counted(best, request.num_tokens, request.priority, tokens):
            yield preferred_replicas

    @contextlib.contextmanager
    def decoding(self, pool: str, request: Request) -> Iterator[tuple[str, ...]]:
        """Yield the decode replicas for a request, best first. It counts as running at the first in this block."""
        preferred_replicas = tuple(one.replica for one in self._rank_decode(pool, request))
        with self._decoding_at(preferred_replicas, request, queued_tokens=0):
            yield preferred_replicas

    @contextlib.contextmanager
    def serving(self, preferred_replicas: Sequence[str], request: Request) -> Iterator[None]:
        """Count the request and its prompt at the first of the replicas in this block."""
        queued = request.num_tokens - self._known(request).get(preferred_replicas[0], 0)
        with self._decoding_at(preferred_replicas, request, queued):
            yield

    @contextlib.contextmanager
    def _decoding_at(self, preferred_replicas: Sequence[str], request: Request, queued_tokens: int) -> Iterator[None]:
        best = preferred_replicas[0] if preferred_replicas else ""
        if best:
            self._prefixes.note(best, request.tokens, request.cache_salt)
        with self._counted(best, request.num_tokens, request.priority, queued_tokens):
            yield

    def _rank_prefill(self, request: Request) -> list[Ranked]:
        return rank_prefill(self._replicas(PREFILL), request.num_tokens, self._known(request), request.priority)

    def _rank_decode(self, pool: str, request: Request) -> list[Ranked]:
        return rank_decode(self._replicas(pool), request.num_tokens, self._rules.page_tokens)

    def _known(self, request: Request) -> dict[str, int]:
        return self._prefixes.known_tokens(request.tokens, request.cache_salt)

    def _replicas(self, pool: str) -> list[ReplicaStats]:
        return [self._corrected(stats) for stats in self._stats if stats.identity.pool == pool]

    def _corrected(self, stats: ReplicaStats) -> ReplicaStats:
        """Return a replica's statistics, corrected by the requests sent to it or ended there since they were taken."""
        now, then = self._sent[stats.name], self._sent_then.get(stats.name, Sent())
        queue = stats.prefill_queue
        levels = {*queue.queued_tokens, *now.queued, *then.queued}
        queued = {n: queue.queued_tokens.get(n, 0) + now.queued.get(n, 0) - then.queued.get(n, 0) for n in levels}
        pages = -(-(now.tokens - then.tokens) // self._rules.page_tokens)
        return replace(
            stats,
            waiting=max(0, stats.waiting + now.requests - then.requests),
            prefill_queue=replace(queue, queued_tokens={n: max(0, tokens) for n, tokens in queued.items()}),
            pages={name: _with(counts, pages) for name, counts in stats.pages.items()},
        )

    @contextlib.contextmanager
    def _counted(self, replica: str, tokens: int, priority: int, queued_tokens: int) -> Iterator[None]:
        if not replica:
            yield
            return
        self._sent[replica].change(1, tokens, queued_tokens, priority)
        try:
            yield
        finally:
            self._sent[replica].change(-1, tokens, queued_tokens, priority)


def _with(counts: PageCounts, taken: int) -> PageCounts:
    """Return the counts after `taken` more pages were taken (or given back, if negative), within what is there."""
    return replace(counts, free=max(-counts.cached, min(counts.free - taken, counts.total - counts.cached)))
