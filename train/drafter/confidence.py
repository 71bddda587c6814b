"""Measures how well a drafter's confidences predict the survival of its drafts.

The survival of draft k is predicted as the product of the first k confidences; the draft survives if drafts 1 to k are
all accepted. Errors and areas are DeepSpec's: 20 bins for the calibration error, 1,000 for the area under the curve.

N = drafts that were verified at one position of their block
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
BINS, AREA_BINS, RELIABILITY_BINS = 20, 1000, 10


@dataclass(frozen=True)
class ReliabilityBin:
    """The number of drafts whose predicted survival falls into one bin, their mean prediction and their survival."""

    drafts: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class ConfidenceQuality:
    """Calibration error and area under the curve at each position of a block; the reliability of all together."""

    ece: list[float]
    auc: list[float]
    reliability: list[ReliabilityBin]

    @classmethod
    def of(cls, positions: Sequence[tuple[Values, Flags]]) -> Self:
        """Measure predictions and outcomes, given for each position of the block."""
        together = (np.concatenate(column) for column in zip(*positions, strict=True))
        return cls([ece(*pair) for pair in positions], [auc(*pair) for pair in positions], reliability(*together))


def reliability(predicted_N: Values, survived_N: Flags) -> list[ReliabilityBin]:
    """Return the points of a reliability diagram, for bins of equal width."""
    bin_N = _bins(predicted_N, RELIABILITY_BINS)
    found = []
    for b in range(RELIABILITY_BINS):
        inside = bin_N == b
        count = int(inside.sum())
        predicted, observed = (float(x[inside].mean()) if count else 0.0 for x in (predicted_N, survived_N))
        found.append(ReliabilityBin(count, predicted, observed))
    return found


def ece(predicted_N: Values, survived_N: Flags) -> float:
    """Return the expected calibration error: |mean prediction - survival| in each bin, weighted by the bin's size."""
    if not len(predicted_N):
        return 0.0
    bin_N = _bins(predicted_N, BINS)
    predicted, survived = (np.bincount(bin_N, x, BINS) for x in (predicted_N, survived_N))
    return float(np.abs(predicted - survived).sum() / len(predicted_N))


def auc(predicted_N: Values, survived_N: Flags) -> float:
    """Return the probability that a surviving draft was predicted to be likelier than a rejected one.

    Equal predictions count half; the result is 0.5 if all drafts survived, or none.
    """
    bin_N = _bins(predicted_N, AREA_BINS)
    survived, rejected = (np.bincount(bin_N[flags], minlength=AREA_BINS) for flags in (survived_N, ~survived_N))
    if not survived.sum() or not rejected.sum():
        return 0.5
    below = rejected.cumsum() - rejected
    return float((survived * (below + 0.5 * rejected)).sum() / (survived.sum() * rejected.sum()))


def _bins(predicted_N: Values, count: int) -> NDArray[np.int64]:
    return np.minimum((predicted_N * count).astype(np.int64), count - 1)
