"""Where a request goes.

    prefill   to the replica that will have its first token soonest: what waits there before it, and what of the prompt
              it has not got already, at the pace that it is computing
    decode    to the replica that has pages for it and gives it most tokens per second, once it is there
    local     a short or mostly known prompt may be prefilled by the decode replica itself, where that costs all
              requests together less time than a handoff does
    pool      the one it names; otherwise by the pool policy

Every answer is a ranking, best first: if the best is gone or full, the next one takes its place.
"""

import enum
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.stats import ReplicaStats


class PoolPolicy(enum.StrEnum):
    FIRST = "first"  # the first pool of the configuration
    FASTEST = "fastest"  # whichever gives most tokens per second now
    SPILL = "spill"  # the first pool that gives the target's tokens per second; if none does, the fastest


@dataclass(frozen=True)
class Ranked:
    """A replica, and what is expected of it: seconds to the first token (prefill), tokens per second (decode)."""

    replica: str
    expected: float


def first_token_seconds(stats: ReplicaStats, num_tokens: int, known_tokens: int, priority: int) -> float:
    """Seconds until this prefill replica has computed a prompt: what is queued before it, then its own tokens.

    A replica that has measured nothing yet says 0 for its pace: then 0.
    """
    queue = stats.prefill_queue
    if not queue.tokens_per_second:
        return 0.0
    computing = (num_tokens - known_tokens) / queue.tokens_per_second
    return queue.min_step_seconds + queued_seconds(stats, priority) + computing


def queued_seconds(stats: ReplicaStats, priority: int) -> float:
    """Seconds of prompts that a replica computes before one of this priority."""
    queue = stats.prefill_queue
    if not queue.tokens_per_second:
        return 0.0
    ahead = sum(tokens for level, tokens in queue.queued_tokens.items() if level <= priority)
    return ahead / queue.tokens_per_second


def rank_prefill(
    replicas: Sequence[ReplicaStats], num_tokens: int, known_tokens: Mapping[str, int], priority: int = 0
) -> list[Ranked]:
    """Prefill replicas for a prompt, soonest first. `known_tokens`: of its beginning, by replica. Ties go to the one
    that has had least to do, then by name."""

    def seconds(stats: ReplicaStats) -> float:
        return first_token_seconds(stats, num_tokens, known_tokens.get(stats.name, 0), priority)

    order = sorted(replicas, key=lambda stats: (seconds(stats), stats.counters.tokens, stats.name))
    return [Ranked(stats.name, seconds(stats)) for stats in order]


def rank_decode(replicas: Sequence[ReplicaStats], num_tokens: int, page_tokens: int) -> list[Ranked]:
    """Decode replicas for a request of so many tokens in pages, best first.

    Those that have room for it now come before those where it would have to wait; then by the tokens per second that
    it would get; where steps have not been measured, by the fewest requests.
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
    """Decode replicas that could prefill the prompt themselves, at once, the cheapest first.

    `expected`: seconds that all requests together would lose by it: this one until its first token, and each that runs
    there for as long as the prompt is being computed.
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
    """Whether a request of so many tokens could begin at once: a place in the batch, and pages of every group."""
    needed = -(-num_tokens // page_tokens)
    free = min((pages.free + pages.cached for pages in stats.pages.values()), default=needed)
    return _requests(stats) < stats.max_requests and free >= needed


def user_rate(stats: ReplicaStats, more: int = 1) -> float:
    """Tokens per second that each request of a decode replica would get with so many more of them; those that cannot
    run at once take turns. 0 if nothing has been measured there."""
    return rate_at(stats.forecast.request_rates, _requests(stats) + more, stats.max_requests)


def rate_at(rates: Mapping[int, float], requests: int, max_requests: int) -> float:
    """`rates` between and beyond the counts it has; beyond `max_requests`, requests take turns."""
    if not rates:
        return 0.0
    running = max(1, min(requests, max_requests))
    counts = sorted(rates)
    place = bisect_left(counts, running)
    if place == 0:
        rate = rates[counts[0]]
    elif place == len(counts):
        rate = rates[counts[-1]] * counts[-1] / running
    else:
        below, above = counts[place - 1], counts[place]
        rate = rates[below] + (rates[above] - rates[below]) * (running - below) / (above - below)
    return rate * running / max(running, requests)


def choose_pool(
    policy: PoolPolicy, pools: Mapping[str, Sequence[Ranked]], target_rate: float | None = None
) -> str | None:
    """The decode pool of a request that names none. `pools`: their replicas as `rank_decode` has them, in the order of
    the configuration; a pool without replicas is passed over. None if no pool has any."""
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
