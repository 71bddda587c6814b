"""The results of a simulation: requests and replicas."""

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from policy.percentile import percentile


class End(enum.StrEnum):
    DONE = "done"
    REFUSED = "refused"  # when it came: RESOURCE_EXHAUSTED
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Served:
    """One request. Seconds from the start; `first` and `ended` as its client sees them, nan if there was none."""

    at: float
    ended: float
    end: End
    first: float = math.nan
    input_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    pool: str = ""
    domain: str = ""
    tier: str = ""

    @property
    def ttft(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first - self.at

    @property
    def tpot(self) -> float:
        """Seconds of each token after the first; nan for an answer of one."""
        return (self.ended - self.first) / (self.tokens - 1) if self.tokens > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A replica's totals: it was there for `seconds`, of which steps took `busy_seconds`."""

    name: str
    pool: str
    seconds: float
    busy_seconds: float
    steps: int
    tokens: int
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    moved_bytes: int = 0


@dataclass(frozen=True)
class SimulationResult:
    """All requests and all replicas of a simulation of `seconds`."""

    served: Sequence[Served]
    machines: Sequence[Machine]
    seconds: float
    scaled: Sequence[tuple[float, dict[str, int]]] = field(default_factory=tuple)
    """When the wanted number of replicas changed, and to what."""

    def of(self, end: End) -> list[Served]:
        return [one for one in self.served if one.end == end]

    @property
    def done(self) -> list[Served]:
        return self.of(End.DONE)

    @property
    def tokens(self) -> int:
        """Return the tokens of complete answers."""
        return sum(one.tokens for one in self.done)

    @property
    def throughput(self) -> float:
        """Output tokens per second, from the first arrival to the last end."""
        if not self.done:
            return 0.0
        return self.tokens / (max(one.ended for one in self.done) - min(one.at for one in self.served))

    @property
    def mean_tpot(self) -> float:
        return _mean(one.tpot for one in self.done)

    def ttft(self, percent: float) -> float:
        return _percentile((one.ttft for one in self.done), percent)

    def tpot(self, percent: float) -> float:
        return _percentile((one.tpot for one in self.done), percent)

    def end_to_end(self, percent: float) -> float:
        return _percentile((one.ended - one.at for one in self.done), percent)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _percentile(values: Iterable[float], percent: float) -> float:
    known = [value for value in values if not math.isnan(value)]
    return percentile(known, percent) if known else math.nan
