"""What steps past say about drafts to come: how far confidences can be trusted, and whether drafting pays.

Nothing here knows the drafts of the step that it decides about, so what it says never costs exactness.

R = requests, K = drafts of a block
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decode.objective import StepLoad, StepSeconds, limited, theta, top
from engine.facts import Survival


class Calibration:
    """How often drafts at each place survived, against how often they were expected to.

    Both are sums that fade; PRIOR drafts that did as expected are added, so that a few say little.
    """

    PRIOR, FADING = 8.0, 0.98

    def __init__(self, block_length: int) -> None:
        self._expected_K = torch.full((block_length,), self.PRIOR, dtype=torch.float64)
        self._observed_K = self._expected_K.clone()

    def applied(self, survival_RK: Tensor) -> Tensor:
        """Survival as it turned out for drafts that looked like these; it still never rises along a request."""
        trust_K = (self._observed_K / self._expected_K)[: survival_RK.shape[1]].to(survival_RK.device)
        return (survival_RK * trust_K).clamp(max=1.0).cummin(dim=1).values

    def observe(self, survival_RK: Tensor, lengths: Sequence[int], accepted: Sequence[int]) -> None:
        """`survival_RK` was expected, before `applied`; of each request's drafts, `lengths` were verified."""
        places_K = torch.arange(survival_RK.shape[1])
        verified_RK = places_K < torch.tensor(lengths)[:, None]
        survived_RK = places_K < torch.tensor(accepted)[:, None]
        for sums_K, values_RK in (
            (self._expected_K, survival_RK.cpu() * verified_RK),
            (self._observed_K, survived_RK.double()),
        ):
            faded_K = (sums_K - self.PRIOR) * self.FADING + self.PRIOR
            faded_K[: len(places_K)] += values_RK.sum(dim=0)
            sums_K.copy_(faded_K)


class DraftLengthController:
    """What drafting will be worth, by the mean survival at each place in steps past.

    While it is not worth its time, a step drafts now and then all the same, to see whether that has changed: after
    FEWEST steps first, then, as long as it has not, after twice as many each time, MOST at last. While it is, one draft
    more is made than will be verified, to see whether that one is worth it too.
    """

    FEWEST, MOST = 8, 256
    EMA_WEIGHT = 0.2  # the share of the newest step in the mean
    KEPT = 32  # steps for which an answer holds while no drafts are made: a step may take less time than the answer

    def __init__(self, seconds: StepSeconds) -> None:
        self._seconds = seconds
        self._mean_K = torch.ones(seconds.block_length, dtype=torch.float64)
        self._seen = 0
        self._pause = self.FEWEST
        self._waited = 0
        self._answers: dict[tuple[object, ...], int] = {}
        self._asked = 0

    def drafts(self, demand: StepLoad) -> int:
        """How many drafts of each request to make now."""
        if not any(demand.most):
            return 0
        if useful := self._known_useful(demand):
            self._pause, self._waited = self.FEWEST, 0
            return min(useful + 1, self._seconds.block_length, max(demand.most))
        self._waited += 1
        if self._waited < self._pause:
            return 0
        self._pause, self._waited = min(2 * self._pause, self.MOST), 0
        return min(self._seconds.block_length, max(demand.most))

    @property
    def survival(self) -> Survival:
        """At the places of which anything has been seen."""
        return Survival(self._mean_K[: self._seen].cummin(0).values.tolist())

    def saw(self, survival_RK: Tensor) -> None:
        """Drafts were made, and these are their chances, before any limit of the requests."""
        mean_K = survival_RK.mean(dim=0).cpu()
        known, seen = self._seen, len(mean_K)
        self._mean_K[:known][:seen] = self._mean_K[:known][:seen].lerp(mean_K[:known], self.EMA_WEIGHT)
        self._mean_K[known:seen] = mean_K[known:]
        self._seen = max(known, seen)
        self._answers = {}

    def _known_useful(self, demand: StepLoad) -> int:
        """`_useful`, computed anew every KEPT steps, after drafts were seen and for other requests."""
        self._asked += 1
        if self._asked % self.KEPT == 0:
            self._answers = {}
        most = tuple(min(limit, self._seconds.block_length) for limit in demand.most)
        key = (most, demand.context // self._seconds.NEAR)
        if key not in self._answers:
            self._answers[key] = self._useful(demand)
        return self._answers[key]

    def _useful(self, demand: StepLoad) -> int:
        """How many drafts the request that gets most would get of drafts as they have been; 0 if none is worth it."""
        requests = len(demand.most)
        expected_RK = limited(self._mean_K.cummin(0).values.expand(requests, -1), demand.most)
        worth = theta(expected_RK, self._seconds, demand)
        without = requests / self._seconds.without(requests, demand)
        return max(top(expected_RK, int(worth.argmax()))) if worth.max() > without else 0
