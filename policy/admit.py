"""Decides which requests are admitted, and how many lost ones may be sent again.

A request that cannot be answered in time would delay others: it is refused when it arrives, with the time after which
it would be admitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.stats import ReplicaStats
from policy.route import Ranked, queued_seconds


@dataclass(frozen=True)
class Refusal:
    """Says why a request is not admitted, and after how many seconds it probably would be."""

    reason: str
    retry_seconds: float


MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 60.0


def refusal(
    prefill: Sequence[Ranked],
    replicas: Sequence[ReplicaStats],
    priority: int,
    seconds_left: float,
    max_queued_seconds: float,
) -> Refusal | None:
    """Return None if the request is admitted.

    `prefill`: the replicas as ranked for it, with the seconds to its first token. `seconds_left`: its deadline.
    `max_queued_seconds`: how many seconds of work may wait before prefill; only what is served before this request
    counts, so a higher priority is admitted where a lower one is not.
    """
    if not prefill or not replicas:
        return None  # nothing is known: whoever takes it decides
    soonest = prefill[0].expected
    if soonest > seconds_left:
        late = f"its first token would come in {soonest:.1f} s, and it has {seconds_left:.1f} s (deadline_seconds)"
        return _refused(late, soonest - seconds_left)
    queued = min(queued_seconds(stats, priority) for stats in replicas)
    if queued > max_queued_seconds:
        full = f"{queued:.1f} s of prompts wait already, {max_queued_seconds:.1f} s may (gateway.max_queued_seconds)"
        return _refused(full, queued - max_queued_seconds)
    return None


def _refused(reason: str, seconds: float) -> Refusal:
    return Refusal(reason, min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS))


class RetryBudget:
    """Limits how many attempts more all requests together may have.

    Each attempt more takes one from the budget, and each request that ends well gives back `share`. So while nearly
    everything is well, every loss is cured; when everything fails, there are `max_attempts` more and then no storm.
    """

    def __init__(self, max_attempts: int, share: float = 0.5) -> None:
        self._max_attempts = float(max_attempts)
        self._share = share
        self.left = float(max_attempts)

    def take(self) -> bool:
        """Take one attempt more; return False if the budget is spent."""
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def give_back(self) -> None:
        """Count a request that has ended well."""
        self.left = min(self._max_attempts, self.left + self._share)
