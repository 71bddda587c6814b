"""Who is let in, and who may try again.

A request that cannot be answered in time costs others theirs: it is refused when it comes, with the time after which
it would fit, instead of when it is late.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.facts import ReplicaStats
from policy.route import Ranked, queued_seconds


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in, and after how many seconds it would be, as things go."""

    reason: str
    retry_seconds: float


LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.1, 60.0


def refusal(
    prefill: Sequence[Ranked],
    replicas: Sequence[ReplicaStats],
    priority: int,
    seconds_left: float,
    most_queued_seconds: float,
) -> Refusal | None:
    """None if the request may come in.

    `prefill`: the replicas as ranked for it, with the seconds to its first token. `seconds_left`: its deadline.
    `most_queued_seconds`: how many seconds of work may wait before prefill; only what is served before this request
    counts, so a higher priority gets in where a lower one does not.
    """
    if not prefill or not replicas:
        return None  # nothing is known: whoever takes it decides
    soonest = prefill[0].expected
    if soonest > seconds_left:
        late = f"its first token would come in {soonest:.1f} s, and it has {seconds_left:.1f} s (deadline_seconds)"
        return _refused(late, soonest - seconds_left)
    queued = min(queued_seconds(stats, priority) for stats in replicas)
    if queued > most_queued_seconds:
        full = f"{queued:.1f} s of prompts wait already, {most_queued_seconds:.1f} s may (gateway.max_queued_seconds)"
        return _refused(full, queued - most_queued_seconds)
    return None


def _refused(reason: str, seconds: float) -> Refusal:
    return Refusal(reason, min(max(seconds, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS))


class RetryBudget:
    """How often requests may be sent round again, all together.

    Each attempt more takes one from it, each request that ends well gives back `share`. So when everything fails, there
    are `most` attempts more and then no storm; while nearly everything is well, every loss is cured.
    """

    def __init__(self, most: int, share: float = 0.5) -> None:
        self._most = float(most)
        self._share = share
        self.left = float(most)

    def take(self) -> bool:
        """One attempt more; False if the budget is spent."""
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def give_back(self) -> None:
        """A request has ended well."""
        self.left = min(self._most, self.left + self._share)
