"""Sequential temperature scaling: one temperature for each place of a block, so that survival means what it says.

From recorded steps (decode/record.py): for place k = 1, 2, ... in order, the temperature T_k that gives the cumulative
product of sigmoid(logit / T) the least expected calibration error, those of the places before fixed (DSpark paper,
section on calibration). Error and area are DeepSpec's: 20 bins of the cumulative product against the accepted prefix,
and 1,000 bins. Record with `planner: fixed`: a planner that chooses by confidence leaves out what it thinks little of.

N = drafts that were verified at a place, K = places
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decode.record import Header, StepRecord, read
from engine.drafters.calibration import FILE, Calibration
from engine.errors import ConfigError

Values = NDArray[np.float64]
TEMPERATURES = np.geomspace(0.25, 8.0, 121)
BINS, AREA_BINS, RELIABILITY_BINS = 20, 1000, 10
EDGE = 1e-5  # confidences are recorded with 5 decimals
LEAST_DRAFTS = 200  # at a place, or its temperature stays 1


@dataclass(frozen=True)
class Pairs:
    """What was said of verified drafts and what became of them. Row n has the first `count_N[n]` places."""

    confidence_NK: Values
    count_N: NDArray[np.int64]
    accepted_N: NDArray[np.int64]

    @classmethod
    def of(cls, steps: Iterable[StepRecord], block_length: int) -> "Pairs":
        rows, counts, accepted = [], [], []
        for step in steps:
            if not step.confidence:
                continue
            for confidence, length, survived in zip(step.confidence, step.lengths, step.accepted, strict=True):
                if length:
                    rows.append([*confidence[:length], *[1.0] * (block_length - length)])
                    counts.append(length)
                    accepted.append(survived)
        return cls(np.array(rows).reshape(-1, block_length), np.array(counts, int), np.array(accepted, int))

    def __len__(self) -> int:
        return len(self.count_N)


@dataclass(frozen=True)
class Fit:
    """Temperatures, and each place's error and area before and after; `before` and `after` pool all places."""

    temperatures: list[float]
    drafts: list[int]
    ece_before: list[float]
    ece_after: list[float]
    auc_before: list[float]
    auc_after: list[float]
    before: list["Reliability"]
    after: list["Reliability"]


@dataclass(frozen=True)
class Reliability:
    """Drafts whose survival was foreseen alike (bins of equal width): how many, what was said, what came true."""

    drafts: int
    said: float
    came: float


def reliability(said_N: Values, came_N: NDArray[np.bool_]) -> list[Reliability]:
    """A diagram's points, for all bins."""
    bin_N = np.minimum((said_N * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    found = []
    for b in range(RELIABILITY_BINS):
        inside = bin_N == b
        count = int(inside.sum())
        said, came = (float(values[inside].mean()) if count else 0.0 for values in (said_N, came_N))
        found.append(Reliability(count, said, came))
    return found


def fitted(pairs: Pairs) -> Fit:
    """One temperature for each place, first to last."""
    logit_NK = _logit(pairs.confidence_NK)
    before, after = np.ones(len(pairs)), np.ones(len(pairs))
    fit = Fit([], [], [], [], [], [], [], [])
    said: list[Values] = []
    mended: list[Values] = []
    came: list[NDArray[np.bool_]] = []
    for k in range(pairs.confidence_NK.shape[1]):
        seen = pairs.count_N > k
        survived = (pairs.accepted_N > k)[seen]
        before = before * pairs.confidence_NK[:, k]
        best = 1.0
        if seen.sum() >= LEAST_DRAFTS:
            errors = [ece((after * _sigmoid(logit_NK[:, k] / t))[seen], survived) for t in TEMPERATURES]
            best = float(TEMPERATURES[int(np.argmin(errors))])
        after = after * _sigmoid(logit_NK[:, k] / best)
        said.append(before[seen])
        mended.append(after[seen])
        came.append(survived)
        fit.temperatures.append(best)
        fit.drafts.append(int(seen.sum()))
        for errors_, areas, values in (
            (fit.ece_before, fit.auc_before, before),
            (fit.ece_after, fit.auc_after, after),
        ):
            errors_.append(ece(values[seen], survived))
            areas.append(auc(values[seen], survived))
    fit.before.extend(reliability(np.concatenate(said), np.concatenate(came)))
    fit.after.extend(reliability(np.concatenate(mended), np.concatenate(came)))
    return fit


def ece(survival_N: Values, survived_N: NDArray[np.bool_]) -> float:
    """Expected calibration error: over bins of what was said, |mean said - share that survived|, weighted by size."""
    if not len(survival_N):
        return 0.0
    bin_N = np.minimum((survival_N * BINS).astype(int), BINS - 1)
    said = np.bincount(bin_N, survival_N, BINS)
    came = np.bincount(bin_N, survived_N, BINS)
    return float(np.abs(said - came).sum() / len(survival_N))


def auc(survival_N: Values, survived_N: NDArray[np.bool_]) -> float:
    """The chance that a draft that survived was given more than one that did not; equals count half. 0.5 if all did
    or none."""
    bin_N = np.minimum((survival_N * AREA_BINS).astype(int), AREA_BINS - 1)
    came = np.bincount(bin_N[survived_N], minlength=AREA_BINS)
    gone = np.bincount(bin_N[~survived_N], minlength=AREA_BINS)
    if not came.sum() or not gone.sum():
        return 0.5
    below = gone.cumsum() - gone
    return float((came * (below + 0.5 * gone)).sum() / (came.sum() * gone.sum()))


def calibrate(records: Path, drafter: Path) -> Fit:
    """Fit on every file in `records` and leave the temperatures in the drafter's folder. Raises ConfigError."""
    files = sorted(records.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"{records}: holds no recorded steps (*.jsonl; decode.POOL.record makes them)")
    headers, steps = [], []
    for file in files:
        header, found = read(file)
        headers.append(header)
        steps += [_uncalibrated(step, header) for step in found]
    weights = _one_drafter(headers)
    pairs = Pairs.of(steps, headers[0].block_length)
    if not len(pairs):
        raise ConfigError(f"{records}: no step in it verified a draft that had a confidence")
    fit = fitted(pairs)
    calibration = Calibration(weights=weights, temperatures=tuple(fit.temperatures))
    content = calibration.model_dump() | {"drafts": fit.drafts, "measured": asdict(fit)}
    content["measured"].pop("temperatures")
    (drafter / FILE).write_text(json.dumps(content, indent=1) + "\n")
    return fit


def _uncalibrated(step: StepRecord, header: Header) -> StepRecord:
    """Confidences as the drafter's head gave them: a calibration may have been in force when they were recorded."""
    if header.temperatures is None:
        return step
    rows = [_raw(row, header.temperatures) for row in step.confidence]
    return StepRecord(**{**vars(step), "confidence": rows})


def _raw(row: Sequence[float], temperatures: Sequence[float]) -> list[float]:
    values: list[float] = _sigmoid(_logit(np.array(row)) * np.array(temperatures[: len(row)])).tolist()
    return values


def _one_drafter(headers: list[Header]) -> str:
    """The name of the drafter's weights that all files are about. Raises ConfigError if there is none, or two."""
    found = {json.dumps(header.drafter, sort_keys=True) for header in headers}
    if any(header.synthetic for header in headers):
        raise ConfigError("recorded with synthetic_acceptance: what was accepted says nothing of the drafter")
    if len(found) > 1:
        raise ConfigError(f"recorded with {len(found)} different drafters; calibrate each from its own files")
    drafter = headers[0].drafter
    if drafter is None or "weights" not in drafter:
        raise ConfigError("recorded without a drafter")
    return drafter["weights"]


def _logit(p: Values) -> Values:
    p = np.clip(p, EDGE, 1 - EDGE)
    return np.log(p / (1 - p))


def _sigmoid(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))
