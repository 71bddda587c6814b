"""Describes a service's load at one moment, by which scaling decides; it is measured, recorded and replayed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.stats import ReplicaStats
from policy.percentile import SlidingWindow
from policy.request_state import RequestState
from policy.route import rate_at

RATE_AT = "rate_at_"
RECENT_SECONDS = 10.0
SLOW_PERCENTILE = 5.0


@dataclass(frozen=True, kw_only=True)
class ReplicaLoad:
    """The load of one engine.

    `requests` and `tokens` are counters, the rest gauges. `queued_tokens`: prompt tokens not computed yet.
    `tokens_per_second`: the speed of full prefill steps. `min_step_seconds`: the duration of the shortest.
    `pages_used`: the share of pages in use, of the group with the fewest left. `budget`: tokens verified per decode
    step. `rates`: the tokens per second of each request, by the number of requests.
    """

    requests: float = 0.0
    tokens: float = 0.0
    queued_tokens: float = 0.0
    tokens_per_second: float = 0.0
    min_step_seconds: float = 0.0
    waiting: float = 0.0
    running: float = 0.0
    max_requests: float = 1.0
    pages_used: float = 0.0
    accepted_length: float = 0.0
    budget: float = 0.0
    rates: Mapping[int, float] = field(default_factory=dict)

    @property
    def users(self) -> float:
        """The number of requests that wait or run."""
        return self.waiting + self.running

    def user_rate(self, users: float) -> float:
        """Return the tokens per second of each of `users` requests; 0 if no step has been measured."""
        return rate_at(self.rates, max(1, round(users)), int(self.max_requests))

    @classmethod
    def of(cls, stats: ReplicaStats) -> "ReplicaLoad":
        used = [1 - (pages.free + pages.cached) / pages.total for pages in stats.pages.values() if pages.total]
        return cls(
            requests=stats.counters.requests,
            tokens=stats.counters.tokens,
            queued_tokens=sum(stats.prefill_queue.queued_tokens.values()),
            tokens_per_second=stats.prefill_queue.tokens_per_second,
            min_step_seconds=stats.prefill_queue.min_step_seconds,
            waiting=stats.waiting,
            running=stats.running,
            max_requests=stats.max_requests,
            pages_used=max(used, default=0.0),
            accepted_length=stats.forecast.accepted_length,
            budget=stats.forecast.verified_per_step,
            rates=stats.forecast.request_rates,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The load as flat numbers, the form that Ray Serve's metrics have."""
        flat = {name: float(value) for name, value in vars(self).items() if name != "rates"}
        return flat | {f"{RATE_AT}{count}": float(rate) for count, rate in self.rates.items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> "ReplicaLoad":
        rates = {int(n.removeprefix(RATE_AT)): rate for n, rate in metrics.items() if n.startswith(RATE_AT)}
        known = {name: metrics[name] for name in cls.__dataclass_fields__ if name in metrics}
        return cls(**known, rates=rates)


@dataclass(frozen=True, kw_only=True)
class FrontLoad:
    """The latencies that all gateways measured over recent answers; None if there were none.

    `ttft_seconds`: seconds to the first token, at the target's percentile. `user_rate`: tokens per second of the
    slowest twentieth.
    """

    ttft_seconds: float | None = None
    user_rate: float | None = None


class RecentAnswers:
    """Keeps the latencies and rates of the answers that ended within the last RECENT_SECONDS."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._first_token_seconds = SlidingWindow(RECENT_SECONDS, now)
        self._user_rates = SlidingWindow(RECENT_SECONDS, now)

    def add(self, state: RequestState) -> None:
        """Add a request that has just succeeded."""
        if state.first_token_seconds is not None:
            self._first_token_seconds.add(state.first_token_seconds)
        if state.tokens_per_second is not None:
            self._user_rates.add(state.tokens_per_second)

    def load(self, ttft_percentile: float) -> FrontLoad:
        return FrontLoad(
            ttft_seconds=self._first_token_seconds.percentile(ttft_percentile),
            user_rate=self._user_rates.percentile(SLOW_PERCENTILE),
        )


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of the service at `now`, seconds on a monotonic clock.

    `replicas`: the target number of replicas of each pool, running or not. `prefill` and each pool of `decode` have
    the running replicas by name.
    """

    now: float
    replicas: Mapping[str, int]
    prefill: Mapping[str, ReplicaLoad]
    decode: Mapping[str, Mapping[str, ReplicaLoad]]
    front: FrontLoad = FrontLoad()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Load":
        """Raise KeyError or TypeError if `content` is not a load."""
        return cls(
            now=content["now"],
            replicas=dict(content["replicas"]),
            prefill=_loads(content["prefill"]),
            decode={pool: _loads(replicas) for pool, replicas in content["decode"].items()},
            front=FrontLoad(**content["front"]),
        )


def _loads(content: Mapping[str, Any]) -> dict[str, ReplicaLoad]:
    def load(fields: Mapping[str, Any]) -> ReplicaLoad:
        return ReplicaLoad(**{**fields, "rates": {int(count): rate for count, rate in fields["rates"].items()}})

    return {name: load(fields) for name, fields in content.items()}
