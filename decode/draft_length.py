"""Calibrates confidences by the acceptance of past steps, and decides from it whether drafting pays.

Nothing here depends on the drafts of the step that it decides about, so speculation stays lossless.

R = requests, K = drafts of a block
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from decode.batch import StepLoad
from decode.objective import StepSeconds, expected_throughput, limited, top
from engine.facts import Survival
from engine.mean import ExponentialMean


class MeanSurvival:
    """The mean survival of drafts at each position of a block, as far as positions have been observed."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._means: list[ExponentialMean] = []

    def observe(self, survival: Iterable[float]) -> None:
        """Add the survival that a step had at the first positions."""
        for position, sample in enumerate(survival):
            if position == len(self._means):
                self._means.append(ExponentialMean(self._weight))
            self._means[position].observe(sample)

    @property
    def survival(self) -> Survival:
        return Survival([*accumulate((mean.or_else(1.0) for mean in self._means), min)])


class OnlineCalibration:
    """The ratio of how often drafts at each position survived to how often they were expected to.

    Both are sums that fade; PRIOR drafts that did as expected are added, so that a few observations change little.
    """

    PRIOR, FADING = 8.0, 0.98

    def __init__(self, block_length: int) -> None:
        self._expected_K = torch.full((block_length,), self.PRIOR, dtype=torch.float64)
        self._observed_K = self._expected_K.clone()

    def applied(self, survival_RK: Tensor) -> Tensor:
        """Scale survival by that ratio; the result still never rises along a request."""
        trust_K = (self._observed_K / self._expected_K)[: survival_RK.shape[1]].to(survival_RK.device)
        return (survival_RK * trust_K).clamp(max=1.0).cummin(dim=1).values

    def observe(self, survival_RK: Tensor, lengths: Sequence[int], accepted: Sequence[int]) -> None:
        """Compare the survival that was expected, before `applied`, with the drafts verified and accepted."""
        position_K = torch.arange(survival_RK.shape[1])
        verified_RK = position_K < torch.tensor(lengths)[:, None]
        survived_RK = position_K < torch.tensor(accepted)[:, None]
        for sums_K, values_RK in (
            (self._expected_K, survival_RK.cpu() * verified_RK),
            (self._observed_K, survived_RK.double()),
        ):
            faded_K = (sums_K - self.PRIOR) * self.FADING + self.PRIOR
            faded_K[: len(position_K)] += values_RK.sum(dim=0)
            sums_K.copy_(faded_K)


class DraftLengthController:
    """Decides how many drafts a step makes, by the mean survival of drafts in past steps.

    While drafting does not pay, a step now and then drafts all the same, to find out whether that has changed: first
    after MIN_PAUSE steps, then, as long as it has not, after twice as many each time, up to MAX_PAUSE. While it pays,
    one draft more is made than will be verified, to find out whether that one would pay, too.
    """

    MIN_PAUSE, MAX_PAUSE = 8, 256
    EMA_WEIGHT = 0.2
    CACHED_STEPS = 32  # steps for which a decision is reused while no drafts are made: a step can be shorter than it

    def __init__(self, seconds: StepSeconds) -> None:
        self._seconds = seconds
        self._mean = MeanSurvival(self.EMA_WEIGHT)
        self._pause = self.MIN_PAUSE
        self._paused_steps = 0
        self._cache: dict[tuple[object, ...], int] = {}
        self._steps = 0

    def drafts(self, load: StepLoad) -> int:
        """Return how many drafts of each request to make now."""
        if not any(load.max_drafts):
            return 0
        if useful := self._cached_useful(load):
            self._pause, self._paused_steps = self.MIN_PAUSE, 0
            return min(useful + 1, self._seconds.block_length, max(load.max_drafts))
        self._paused_steps += 1
        if self._paused_steps < self._pause:
            return 0
        self._pause, self._paused_steps = min(2 * self._pause, self.MAX_PAUSE), 0
        return min(self._seconds.block_length, max(load.max_drafts))

    @property
    def survival(self) -> Survival:
        """The mean survival at the positions that have been observed."""
        return self._mean.survival

    def observe(self, survival_RK: Tensor) -> None:
        """Take note of the survival that a step's drafts are expected to have, before any limit of the requests."""
        self._mean.observe(survival_RK.mean(dim=0).tolist())
        self._cache = {}

    def _cached_useful(self, load: StepLoad) -> int:
        """Return `_useful`, computed anew every CACHED_STEPS steps, after new drafts and for other requests."""
        self._steps += 1
        if self._steps % self.CACHED_STEPS == 0:
            self._cache = {}
        max_drafts = tuple(min(limit, self._seconds.block_length) for limit in load.max_drafts)
        key = (max_drafts, self._seconds.rounded(load.context))
        if key not in self._cache:
            self._cache[key] = self._useful(load)
        return self._cache[key]

    def _useful(self, load: StepLoad) -> int:
        """Return the most drafts of one request that would pay if drafts survive as they did; 0 if none pays."""
        requests, known = len(load.max_drafts), self.survival.at
        unknown = (self._seconds.block_length - len(known)) * [min(known, default=1.0)]
        mean_K = torch.tensor([*known, *unknown], dtype=torch.float64)
        expected_RK = limited(mean_K.expand(requests, -1), load.max_drafts)
        throughput = expected_throughput(expected_RK, self._seconds, load)
        plain = requests / self._seconds.plain(requests, load)
        return max(top(expected_RK, int(throughput.argmax()))) if throughput.max() > plain else 0
