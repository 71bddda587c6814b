"""Decides which requests are admitted, and how many lost requests may be retried.

A request that would miss its deadline would only delay others: it is refused on arrival, with the seconds to wait
before a retry.
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
    """Return why a request is refused, or None if it is admitted.

    `prefill`: the replicas ranked by the seconds to its first token. `seconds_left`: its deadline.
    `max_queued_seconds`: seconds of prefill work that may wait. Only prompts served before this request count, so a
    higher priority is admitted where a lower one is not.
    """
    if not prefill or not replicas:
        return None  # without statistics the replica decides
    soonest = prefill[0].expected
    if soonest > seconds_left:
        late = f"the first token would take {soonest:.1f} s, the deadline is in {seconds_left:.1f} s (deadline_seconds)"
        return _refused(late, soonest - seconds_left)
    queued = min(queued_seconds(stats, priority) for stats in replicas)
    if queued > max_queued_seconds:
        full = f"{queued:.1f} s of prompts are queued, {max_queued_seconds:.1f} s may be (gateway.max_queued_seconds)"
        return _refused(full, queued - max_queued_seconds)
    return None


def _refused(reason: str, seconds: float) -> Refusal:
    return Refusal(reason, min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS))


class RetryBudget:
    """Limits the retries of all requests together.

    Each retry takes one from the budget, and each request that succeeds gives back `share`. While most requests
    succeed, every lost one is retried; when everything fails, there are `max_attempts` retries and no retry storm.
    """

    def __init__(self, max_attempts: int, share: float = 0.5) -> None:
        self._max_attempts = float(max_attempts)
        self._share = share
        self.left = float(max_attempts)

    def take(self) -> bool:
        """Take one retry; return False if the budget is spent."""
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def give_back(self) -> None:
        """Give back the share of a request that has succeeded."""
        self.left = min(self._max_attempts, self.left + self._share)
