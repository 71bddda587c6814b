"""The share of fast traffic from which a contender pays.

Of all traffic a share is premium: its users get at least so many tokens per second. The rest is served where that is
cheapest, in both cases alike, so it does not count. Premium traffic is served by what there is without the contender,
on as many replicas as it takes (they are small, and what one has over serves the rest); or by whole replicas of the
contender, which cost the same however little they are used. One of these must hold the model, so there is a share below
which it never pays: that whose tokens cost as much without it as one replica costs. Where the tokens of a full replica
are dearer, none pays.
"""

from dataclasses import dataclass

from compare.study.study import Best, Rivals, Study
from engine.errors import ConfigError


@dataclass(frozen=True)
class ServingOption:
    """A way to serve premium traffic: by replicas of this throughput (tokens per second) and cost."""

    throughput: float
    dollars_per_second: float

    @classmethod
    def of(cls, best: Best | None) -> "ServingOption | None":
        if best is None:
            return None
        if best.dollars_per_second is None:
            raise ConfigError(f"{best.point.setup.name}: break-even needs a cost or price of all its devices")
        return cls(best.point.throughput, best.dollars_per_second)

    @property
    def per_token(self) -> float:
        return self.dollars_per_second / self.throughput


def break_even(against: ServingOption | None, contender: ServingOption | None, traffic: float) -> float | None:
    """The smallest share of `traffic` (tokens per second) at which the contender costs no more. None: at none. What is
    too slow has no cost to compare with: then the share is 0."""
    if contender is None:
        return None
    if against is None:
        return 0.0
    share = contender.dollars_per_second / against.per_token / traffic
    return share if contender.per_token <= against.per_token and share <= 1 else None


def at(study: Study, rivals: Rivals) -> float | None:
    """Return that share for the size of the contender's replica that pays first."""
    against = ServingOption.of(study.best(rivals.against, rivals.user_rate))
    ways = study.ways(rivals.contender, rivals.user_rate)
    shares = [break_even(against, ServingOption.of(way), study.scenario.traffic) for way in ways]
    return min((share for share in shares if share is not None), default=None)
