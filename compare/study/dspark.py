"""DSpark's curve, predicted from a measured curve with MTP-1 and from what drafts are worth. Nothing else is fitted.

1. A step with MTP-1 of c requests takes accepted_length * c / throughput seconds. In it the target computes 2c tokens
   in each of its L layers, and the next-token layer c. Over this work (token-layers) steps are made monotone, straight
   lines between them; before the first and after the last go the lines that fit the first and the last third.
2. What such a step would take for no token at all is its fixed part. A DSpark step has L + 3 layers where MTP-1's has
   L + 1, and its fixed part is longer by that. Its work is that of the verified tokens in L layers and of whole blocks
   in 3 layers.
3. How often each draft survives is published; how sure the drafter is of each is not. Its confidence in the draft at
   position j is beta distributed, Beta(k p_j, k (1 - p_j)), independently: p_j is the published acceptance, and
   k is such that confidences tell drafts that survive from others as well as published (area under the curve, AUC).
4. Of all drafts those with the highest survival are verified, as many as make tokens per second most (DSpark,
   algorithm 1, searched to its end as in production).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.errors import ConfigError
from engine.steptime import rising

DRAWS = 4000
"""Requests whose confidences stand for all."""
PUBLISHED_MTP = 1.79
"""Tokens of a step with MTP-1: V4-Pro's own layer, InferenceX golden_al_distribution (SPEED-Bench coding)."""
PUBLISHED_DSPARK = (1.84, 2.51, 3.01, 3.36, 3.61)
"""With 1 to 5 drafts of DSpark, all verified: V4-Pro-0813, the same source."""
PUBLISHED_AUC = (0.81, 0.90)
"""Of survival, after calibration: DSpark paper."""


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve: requests under way on a GPU, and its throughput in tokens per second."""

    concurrency: float
    throughput: float
    verify_tokens: float = 2.0
    """Of each request and step, the one before the drafts included."""

    @property
    def user_rate(self) -> float:
        """Tokens per second of each request."""
        return self.throughput / self.concurrency


@dataclass(frozen=True)
class Drafting:
    """The gain of a drafter's blocks. `accepted_length`: tokens of a step with 1, 2, ... drafts verified; `auc`: how
    well its confidences tell which drafts survive; `layers`: its own, each over the whole block."""

    accepted_length: tuple[float, ...] = PUBLISHED_DSPARK
    auc: float = sum(PUBLISHED_AUC) / 2
    layers: int = 3

    def __post_init__(self) -> None:
        steps = (1.0, *self.accepted_length)
        gains = [after - before for before, after in zip(steps, self.accepted_length, strict=False)]
        if not gains or min(gains) <= 0 or [1.0, *gains] != sorted([1.0, *gains], reverse=True):
            raise ConfigError(
                f"accepted length {self.accepted_length}: each draft adds something, and less than the last"
            )
        if not 0.5 < self.auc < 1:
            raise ConfigError(f"AUC {self.auc}: should be between 0.5 and 1")

    @property
    def block(self) -> int:
        return len(self.accepted_length)

    @cached_property
    def acceptance(self) -> tuple[float, ...]:
        """Return the acceptance of the draft at each position, if all before it survived."""
        survival = np.diff([1.0, *self.accepted_length])
        return tuple(survival / np.array([1.0, *survival[:-1]]))

    def gained(self, drafts: float) -> float:
        """Tokens that a step adds in the mean if the most certain drafts are verified, so many of each request in the
        mean."""
        return float(self.gains[min(round(drafts * DRAWS), len(self.survival))])

    @cached_property
    def gains(self) -> "np.ndarray":
        """The same with 0, 1, 2, ... drafts of all DRAWS requests together."""
        return np.concatenate([[0.0], np.cumsum(self.survival)]) / DRAWS

    @cached_property
    def survival(self) -> "np.ndarray":
        """Return the survival of all drafts of DRAWS requests, the most certain first; their means by position are the
        published ones."""
        low, high = 0.01, 100.0  # more sure of everything, and less
        while high / low > 1.0001:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if _auc(self._drawn(middle)) > self.auc else (low, middle)
        return np.sort(self._drawn(low), axis=None)[::-1]

    def _drawn(self, sharpness: float) -> "np.ndarray":
        """Return [position, request]."""
        random = np.random.default_rng(0)
        chances = [
            random.beta(p * sharpness, (1 - p) * sharpness, DRAWS) if p < 1 else np.ones(DRAWS) for p in self.acceptance
        ]
        survival = np.cumprod(chances, axis=0)
        wanted = np.diff([1.0, *self.accepted_length])
        return np.asarray(np.minimum(1.0, survival * (wanted / survival.mean(axis=1))[:, None]))


def _auc(survival: "np.ndarray") -> float:
    """Return, in the mean over positions, the chance that a surviving draft was thought likelier than another, where
    each survives as likely as was thought."""
    areas = []
    for chances in np.sort(survival, axis=1):
        lost_below = np.cumsum(1 - chances) - (1 - chances)
        areas.append((chances * lost_below).sum() / (chances.sum() * (1 - chances).sum()))
    return float(np.mean(areas))


class StepCurve:
    """Seconds of a step over its token-layers, from points measured with MTP-1 (step 1 above)."""

    def __init__(self, points: Sequence[CurvePoint], layers: int, accepted_length: float = PUBLISHED_MTP) -> None:
        """`layers`: of the target."""
        if len(points) < 3:
            raise ConfigError(f"{len(points)} points are too few for a curve: at least 3 are needed")
        ordered = sorted(points, key=lambda point: point.concurrency)
        self._work = np.array([point.concurrency * (2 * layers + 1) for point in ordered])
        seconds = [accepted_length * point.concurrency / point.throughput for point in ordered]
        self._seconds = np.array(rising(seconds))
        third = max(2, len(ordered) // 3)
        self._before = np.polyfit(self._work[:third], self._seconds[:third], 1)
        self._after = np.polyfit(self._work[-third:], self._seconds[-third:], 1)

    @property
    def fixed(self) -> float:
        """Seconds of a step without work."""
        return float(max(0.0, self._before[1]))

    def at(self, work: "np.ndarray") -> "np.ndarray":
        inside = np.interp(work, self._work, self._seconds)
        below = self._seconds[0] + self._before[0] * (work - self._work[0])
        above = self._seconds[-1] + self._after[0] * (work - self._work[-1])
        return np.asarray(
            np.where(
                work < self._work[0], np.maximum(self.fixed, below), np.where(work > self._work[-1], above, inside)
            )
        )


def predicted(
    points: Sequence[CurvePoint], layers: int, drafting: Drafting, mtp_accepted_length: float = PUBLISHED_MTP
) -> list[CurvePoint]:
    """Predict the points with DSpark at the concurrencies of `points`, which were measured with MTP-1 on a target of
    `layers` layers."""
    curve = StepCurve(points, layers, mtp_accepted_length)
    verified = np.arange(len(drafting.gains)) / DRAWS
    more_fixed = curve.fixed * (drafting.layers - 1) / (layers + 1)
    found = []
    for point in points:
        drafted = drafting.layers * (1 + drafting.block)
        seconds = curve.at(point.concurrency * ((1 + verified) * layers + drafted)) + more_fixed
        rate = point.concurrency * (1 + drafting.gains) / seconds
        best = int(rate.argmax())
        found.append(CurvePoint(point.concurrency, float(rate[best]), 1 + float(verified[best])))
    return found
