"""Ranks the replicas to which a request may be sent, and chooses its decode pool.

    prefill   first the replica that will have the first token soonest: the tokens queued there and those of the prompt
              that it has not cached, at the speed measured there
    decode    first those that have pages for the request, and of them the one that gives it the most tokens per second
    local     a short or mostly cached prompt may be prefilled by the decode replica itself, if that costs all requests
              together less time than a handoff
    pool      the one that the request names; otherwise the pool policy's choice

If the first replica of a ranking is gone or full, the request is sent to the next.
"""

import enum
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.stats import ReplicaStats


class PoolPolicy(enum.StrEnum):
    FIRST = "first"  # the first pool of the configuration
    FASTEST = "fastest"  # the pool that gives the most tokens per second now
    SPILL = "spill"  # the first pool that gives the target's tokens per second, or else the fastest


@dataclass(frozen=True)
class Ranked:
    """A replica with the value it is ranked by: seconds to the first token (prefill), tokens per second (decode)."""

    replica: str
    expected: float


def first_token_seconds(stats: ReplicaStats, num_tokens: int, known_tokens: int, priority: int) -> float:
    """Return the seconds until a replica has computed a prompt: the tokens queued before it, then its own.

    Returns 0 for a replica that has not measured its speed yet.
    """
    queue = stats.prefill_queue
    if not queue.tokens_per_second:
        return 0.0
    computing = (num_tokens - known_tokens) / queue.tokens_per_second
    return queue.min_step_seconds + queued_seconds(stats, priority) + computing


def queued_seconds(stats: ReplicaStats, priority: int) -> float:
    """Return the seconds of queued prompts that a replica computes before one of this priority."""
    queue = stats.prefill_queue
    if not queue.tokens_per_second:
        return 0.0
    ahead = sum(tokens for level, tokens in queue.queued_tokens.items() if level <= priority)
    return ahead / queue.tokens_per_second


def rank_prefill(
    replicas: Sequence[ReplicaStats], num_tokens: int, known_tokens: Mapping[str, int], priority: int = 0
) -> list[Ranked]:
    """Rank the prefill replicas for a prompt, soonest first; then by the tokens computed so far, then by name.

    `known_tokens`: how many tokens of the prompt's prefix each replica has cached.
    """

    def seconds(stats: ReplicaStats) -> float:
        return first_token_seconds(stats, num_tokens, known_tokens.get(stats.name, 0), priority)

    order = sorted(replicas, key=lambda stats: (seconds(stats), stats.counters.tokens, stats.name))
    return [Ranked(stats.name, seconds(stats)) for stats in order]


def rank_decode(replicas: Sequence[ReplicaStats], num_tokens: int, page_tokens: int) -> list[Ranked]:
    """Rank the decode replicas for a request that needs pages for `num_tokens`, best first.

    Replicas that have room now rank before those where it would wait; then by the tokens per second that it would get;
    where steps have not been measured, by the fewest requests.
    """

    def order(stats: ReplicaStats) -> tuple[bool, float, int, str]:
        return not has_room(stats, num_tokens, page_tokens), -user_rate(stats), _requests(stats), stats.name

    return [Ranked(stats.name, user_rate(stats)) for stats in sorted(replicas, key=order)]


def rank_local(
    replicas: Sequence[ReplicaStats],
    num_tokens: int,
    known_tokens: Mapping[str, int],
    page_tokens: int,
    priority: int = 0,
) -> list[Ranked]:
    """Rank the decode replicas that could prefill the prompt themselves without waiting for room, cheapest first.

    `expected`: the seconds that all requests together would lose: this one until its first token, and each that runs
    there while the prompt is computed.
    """

    def seconds(stats: ReplicaStats) -> float:
        missing, queue = num_tokens - known_tokens.get(stats.name, 0), stats.prefill_queue
        computing = queue.min_step_seconds + missing / queue.tokens_per_second
        return first_token_seconds(stats, num_tokens, num_tokens - missing, priority) + stats.running * computing

    measured = [stats for stats in replicas if stats.prefill_queue.tokens_per_second]
    able = [stats for stats in measured if has_room(stats, num_tokens, page_tokens)]
    order = sorted(able, key=lambda stats: (seconds(stats), _requests(stats), stats.name))
    return [Ranked(stats.name, seconds(stats)) for stats in order]


def has_room(stats: ReplicaStats, num_tokens: int, page_tokens: int) -> bool:
    """Return whether a request could begin at once: the batch is not full, and every group has enough pages."""
    needed = -(-num_tokens // page_tokens)
    free = min((pages.free + pages.cached for pages in stats.pages.values()), default=needed)
    return _requests(stats) < stats.max_requests and free >= needed


def user_rate(stats: ReplicaStats, more: int = 1) -> float:
    """Return the tokens per second that each request of a decode replica would get with `more` requests.

    Requests beyond `max_requests` take turns. Returns 0 if no step has been measured there.
    """
    return rate_at(stats.forecast.request_rates, _requests(stats) + more, stats.max_requests)


def rate_at(rates: Mapping[int, float], requests: int, max_requests: int) -> float:
    """Interpolate `rates`, tokens per second by number of requests; beyond `max_requests`, requests take turns."""
    if not rates:
        return 0.0
    running = max(1, min(requests, max_requests))
    counts = sorted(rates)
    above = bisect_left(counts, running)
    if above == 0:
        rate = rates[counts[0]]
    elif above == len(counts):
        rate = rates[counts[-1]] * counts[-1] / running
    else:
        low, high = counts[above - 1], counts[above]
        rate = rates[low] + (rates[high] - rates[low]) * (running - low) / (high - low)
    return rate * running / max(running, requests)


def choose_pool(
    policy: PoolPolicy, pools: Mapping[str, Sequence[Ranked]], target_rate: float | None = None
) -> str | None:
    """Return the decode pool of a request that names none, or None if no pool has a replica.

    `pools`: the replicas of each pool, ranked by `rank_decode`, in the order of the configuration.
    """
    alive = {pool: ranked[0].expected for pool, ranked in pools.items() if ranked}
    if not alive:
        return None
    fastest = max(alive, key=lambda pool: alive[pool])
    if policy == PoolPolicy.FASTEST:
        return fastest
    if policy == PoolPolicy.SPILL:
        return next((pool for pool, rate in alive.items() if rate >= (target_rate or 0.0)), fastest)
    return next(iter(alive))


def _requests(stats: ReplicaStats) -> int:
    return stats.running + stats.waiting
