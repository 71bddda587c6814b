"""The forecast of token rates that routing and scaling ask of a replica."""

from decode.batch import StepLoad
from decode.plan import Planner
from decode.step_result import StepResult
from engine.facts import Expected, expected_rate
from engine.mean import ExponentialMean


class RateForecast:
    """Tokens per second for any number of requests, by the planner's step times and survival and by recent steps."""

    EMA_WEIGHT = 0.1

    def __init__(self, planner: Planner, max_requests: int) -> None:
        self._planner = planner
        self._max_requests = max_requests
        self._load = StepLoad((), (), 0)
        self._accepted_length = ExponentialMean(self.EMA_WEIGHT)
        self._budget = ExponentialMean(self.EMA_WEIGHT)

    def observe(self, result: StepResult) -> None:
        self._load = result.load
        self._accepted_length.observe(1 + sum(result.accepted) / len(result.accepted))
        self._budget.observe(result.num_verified)

    @property
    def accepted_length(self) -> float:
        """The mean number of tokens that a step gives one request; 0 before the first step."""
        return self._accepted_length.or_else(0.0)

    @property
    def budget(self) -> float:
        """The mean number of drafts that a step verifies; 0 before the first step."""
        return self._budget.or_else(0.0)

    def rates(self) -> dict[int, float]:
        """Return the tokens per second of each request for 1, 2, 4, ... and `max_requests` requests; {} if unknown."""
        powers = (2**n for n in range(self._max_requests.bit_length()))
        counts = sorted({*powers, self._max_requests})
        expected = {count: self._expected(count) for count in counts}
        return {count: found.rate for count, found in expected.items() if found}

    def marginal_rate(self) -> float:
        """Return what one more verified token would add to the tokens per second of all running requests."""
        found = self._expected(max(1, len(self._load.names)))
        return found.marginal_rate if found else 0.0

    def _expected(self, requests: int) -> Expected | None:
        planner, load = self._planner, self._load
        if planner.seconds is None:
            return None
        return expected_rate(
            planner.seconds, planner.survival, requests, load.context, load.overhead_seconds, planner.fixed
        )
