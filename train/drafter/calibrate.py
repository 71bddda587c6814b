"""Sequential temperature scaling: one temperature for each position of a block, so that confidences are probabilities.

From recorded steps (decode/record.py): for position k = 1, 2, ... in order, find the temperature T_k that gives the
cumulative product of sigmoid(logit / T) the least expected calibration error, with the temperatures of the positions
before fixed (DSpark paper, section on calibration). Record with `planner: fixed`: a planner that chooses by confidence
does not verify the drafts of low confidence.

N = verified blocks, K = positions of a block
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from decode.record import Header, StepRecord, read
from engine.drafters.calibration import FILE, Calibration
from engine.errors import ConfigError
from train.drafter.confidence import ConfidenceQuality, Flags, Values, ece

TEMPERATURES = np.geomspace(0.25, 8.0, 121)
ROUNDING = 1e-5  # confidences are recorded with 5 decimals
MIN_DRAFTS = 200  # positions with fewer drafts keep temperature 1


@dataclass(frozen=True)
class ConfidenceRecords:
    """Confidences of blocks of which `count_N` drafts were verified and `accepted_N` accepted."""

    confidence_NK: Values
    count_N: NDArray[np.int64]
    accepted_N: NDArray[np.int64]

    @classmethod
    def of(cls, steps: Iterable[StepRecord], block_length: int) -> Self:
        """Collect the blocks of recorded steps; steps without confidences are ignored."""
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
class CalibrationFit:
    """A temperature for each position, the number of drafts it was fitted on, and the quality before and after."""

    temperatures: list[float]
    drafts: list[int]
    before: ConfidenceQuality
    after: ConfidenceQuality


def fitted(records: ConfidenceRecords) -> CalibrationFit:
    """Fit one temperature for each position, first to last."""
    logit_NK = _logit(records.confidence_NK)
    before_N, after_N = np.ones(len(records)), np.ones(len(records))
    temperatures: list[float] = []
    before: list[tuple[Values, Flags]] = []
    after: list[tuple[Values, Flags]] = []
    for k in range(records.confidence_NK.shape[1]):
        verified_N = records.count_N > k
        survived = (records.accepted_N > k)[verified_N]
        best = 1.0
        if verified_N.sum() >= MIN_DRAFTS:
            errors = [ece((after_N * _sigmoid(logit_NK[:, k] / t))[verified_N], survived) for t in TEMPERATURES]
            best = float(TEMPERATURES[int(np.argmin(errors))])
        before_N = before_N * records.confidence_NK[:, k]
        after_N = after_N * _sigmoid(logit_NK[:, k] / best)
        temperatures.append(best)
        before.append((before_N[verified_N], survived))
        after.append((after_N[verified_N], survived))
    drafts = [len(survived) for _, survived in after]
    return CalibrationFit(temperatures, drafts, ConfidenceQuality.of(before), ConfidenceQuality.of(after))


def calibrate(records: Path, drafter: Path) -> CalibrationFit:
    """Fit on every file in `records` and write the temperatures to the drafter's folder. Raises ConfigError."""
    files = sorted(records.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"{records}: holds no recorded steps (*.jsonl; decode.POOL.record makes them)")
    headers, steps = [], []
    for file in files:
        header, found = read(file)
        headers.append(header)
        steps += [_uncalibrated(step, header) for step in found]
    weights = _common_weights(headers)
    collected = ConfidenceRecords.of(steps, headers[0].block_length)
    if not len(collected):
        raise ConfigError(f"{records}: no step in it verified a draft that had a confidence")
    fit = fitted(collected)
    calibration = Calibration(weights=weights, temperatures=tuple(fit.temperatures))
    measured = {"before": asdict(fit.before), "after": asdict(fit.after)}
    content = calibration.model_dump() | {"drafts": fit.drafts, "measured": measured}
    (drafter / FILE).write_text(json.dumps(content, indent=1) + "\n")
    return fit


def _uncalibrated(step: StepRecord, header: Header) -> StepRecord:
    """Undo the calibration that was in force during the recording, if there was one."""
    if header.temperatures is None:
        return step
    rows = [_raw(row, header.temperatures) for row in step.confidence]
    return StepRecord(**{**vars(step), "confidence": rows})


def _raw(row: Sequence[float], temperatures: Sequence[float]) -> list[float]:
    values: list[float] = _sigmoid(_logit(np.array(row)) * np.array(temperatures[: len(row)])).tolist()
    return values


def _common_weights(headers: list[Header]) -> str:
    """Return the name of the drafter weights that all files used. Raises ConfigError if there is none, or several."""
    found = {json.dumps(header.drafter, sort_keys=True) for header in headers}
    if any(header.synthetic for header in headers):
        raise ConfigError("recorded with synthetic_acceptance: its acceptances do not depend on the drafter")
    if len(found) > 1:
        raise ConfigError(f"recorded with {len(found)} different drafters; calibrate each from its own files")
    drafter = headers[0].drafter
    if drafter is None or "weights" not in drafter:
        raise ConfigError("recorded without a drafter")
    return drafter["weights"]


def _logit(p: Values) -> Values:
    p = np.clip(p, ROUNDING, 1 - ROUNDING)
    return np.log(p / (1 - p))


def _sigmoid(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))
