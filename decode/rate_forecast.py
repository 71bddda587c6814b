"""What requests get here, and would get if there were more or fewer: what routing and scaling ask of a replica."""

from dataclasses import dataclass, field

from decode.objective import Outcome, StepLoad
from decode.plan import Planner
from engine.facts import Expected, expected_rate


@dataclass
class RateForecast:
    """By the planner's own view of step times and drafts, and by the steps that were taken lately."""

    planner: Planner
    max_requests: int
    demand: StepLoad = field(default_factory=lambda: StepLoad((), (), 0))
    accepted_length: float = 0.0
    budget: float = 0.0

    EMA_WEIGHT = 0.1  # the share of the newest step in a mean

    def observe(self, demand: StepLoad, outcome: Outcome) -> None:
        """A step was taken."""
        first, self.demand = not self.accepted_length, demand
        share = 1.0 if first else self.EMA_WEIGHT
        self.accepted_length += share * (1 + sum(outcome.accepted) / len(outcome.accepted) - self.accepted_length)
        self.budget += share * (sum(outcome.lengths) - self.budget)

    def rates(self) -> dict[int, float]:
        """Tokens per second of each request, if there were 1, 2, 4, ... and as many as may run; {} if unknown."""
        powers = (2**n for n in range(self.max_requests.bit_length()))
        counts = sorted({*powers, self.max_requests})
        expected = {count: self._expected(count) for count in counts}
        return {count: found.rate for count, found in expected.items() if found}

    def marginal_rate(self) -> float:
        """What one more verified token would add to the tokens per second of all that run."""
        found = self._expected(max(1, len(self.demand.names)))
        return found.marginal_rate if found else 0.0

    def _expected(self, requests: int) -> Expected | None:
        planner, demand = self.planner, self.demand
        if planner.seconds is None:
            return None
        return expected_rate(
            planner.seconds, planner.survival, requests, demand.context, demand.overhead_seconds, planner.fixed
        )
