"""Rounds of drafting and verification, taken from recorded steps (decode/record.py), and their acceptance figures.

Definitions are those of DeepSpec's evaluation, where it has one:

    accepted length   tokens per round: the accepted drafts and the target's own token after them. A round in which an
                      accepted draft ends the answer is cut there, and has no token of the target's own.
    acceptance        by position: how often a draft there was accepted if those before it were
    ECE, AUC          of the predicted survival (confidence.py) at each position; over all positions their means,
                      weighted by drafts. Positions behind the end of an answer do not count

Rounds in which max_tokens left no room for a whole block are left out: they would count as rejections.
K = drafts of a block
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decode.record import StepRecord
from train.drafter.confidence import ConfidenceQuality, Flags, ReliabilityBin, Values

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(20))


@dataclass(frozen=True)
class GeneratedAnswer:
    """The tokens that a request got, from position `start` on. `ended`: the last of them is an end token."""

    start: int
    tokens: Sequence[int]
    ended: bool

    @property
    def end(self) -> int | None:
        """The position of the end token."""
        return self.start + len(self.tokens) - 1 if self.ended else None


@dataclass(frozen=True)
class DraftRound:
    """The drafts of one request in one step; the first `drafts` count. `confidence` is empty without that head."""

    drafts: int
    accepted: int
    ended: bool
    confidence: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return self.accepted + (not self.ended)


def rounds(steps: Iterable[StepRecord], answers: Mapping[str, GeneratedAnswer], block_length: int) -> list[DraftRound]:
    """Return the rounds of the requests in `answers`. All drafts must have been verified while recording."""
    found = []
    for step in steps:
        for r, name in enumerate(step.requests):
            if name not in answers or step.lengths[r] < block_length:
                continue
            end, position, accepted = answers[name].end, step.positions[r], step.accepted[r]
            ended = end is not None and end <= position + accepted
            drafts = end - position if ended and end is not None else block_length
            confidence = tuple(step.confidence[r][:drafts]) if step.confidence else ()
            found.append(DraftRound(drafts, min(accepted, drafts), ended, confidence))
    return found


@dataclass(frozen=True)
class ThresholdFigures:
    """Figures if only drafts of a predicted survival of at least `threshold` were verified.

    `verified` and `tokens` are per round; `accepted` is the share of the verified drafts.
    """

    threshold: float
    verified: float
    tokens: float
    accepted: float


@dataclass(frozen=True)
class AcceptanceFigures:
    """Figures of a list of rounds. Those of confidence are empty or None for a drafter without that head."""

    rounds: int
    accepted_length: float
    accepted_length_error: float  # standard error of the mean
    acceptance: list[float]
    reached: list[int]
    ece: float | None
    auc: float | None
    ece_by_position: list[float]
    auc_by_position: list[float]
    sweep: list[ThresholdFigures]
    reliability: list[ReliabilityBin]


def figures(of: Sequence[DraftRound]) -> AcceptanceFigures:
    """Compute all figures. Raises ValueError if there is no round."""
    if not of:
        raise ValueError("no round had room for a whole block: raise max_tokens")
    block_length = max(r.drafts for r in of)
    tokens = np.array([r.tokens for r in of], float)
    reached = [sum(r.drafts > k and r.accepted >= k for r in of) for k in range(block_length)]
    taken = [sum(r.accepted > k for r in of) for k in range(block_length)]
    counts: list[int] = []
    quality, sweep = ConfidenceQuality([], [], []), []
    if all(r.confidence for r in of):
        predicted_NK = predicted_survival(of)
        survived_NK = np.array([[r.accepted > k for k in range(block_length)] for r in of])
        pairs: list[tuple[Values, Flags]] = [
            (p[p >= 0], s[p >= 0]) for p, s in zip(predicted_NK.T, survived_NK.T, strict=True)
        ]
        counts, quality = [len(p) for p, _ in pairs], ConfidenceQuality.of(pairs)
        sweep = [with_threshold(of, predicted_NK, threshold) for threshold in THRESHOLDS]
    return AcceptanceFigures(
        rounds=len(of),
        accepted_length=float(tokens.mean()),
        accepted_length_error=float(tokens.std() / len(of) ** 0.5),
        acceptance=[t / r if r else 0.0 for t, r in zip(taken, reached, strict=True)],
        reached=reached,
        ece=float(np.average(quality.ece, weights=counts)) if counts else None,
        auc=float(np.average(quality.auc, weights=counts)) if counts else None,
        ece_by_position=quality.ece,
        auc_by_position=quality.auc,
        sweep=sweep,
        reliability=quality.reliability,
    )


def predicted_survival(of: Sequence[DraftRound]) -> Values:
    """Return the predicted survival of each round's drafts [rounds, K]; -1 at positions that do not count."""
    block_length = max(r.drafts for r in of)
    return np.array([[*np.cumprod(r.confidence), *[-1.0] * (block_length - r.drafts)] for r in of])


def with_threshold(of: Sequence[DraftRound], predicted_NK: Values, threshold: float) -> ThresholdFigures:
    """Compute the figures as if each block had been cut before its first draft below the threshold."""
    length_N = (predicted_NK >= threshold).sum(axis=1)
    accepted_N = np.minimum([r.accepted for r in of], length_N)
    ended_N = np.array([r.ended for r in of]) & (accepted_N == [r.accepted for r in of])
    verified, accepted = int(length_N.sum()), int(accepted_N.sum())
    tokens = accepted + int((~ended_N).sum())
    return ThresholdFigures(threshold, verified / len(of), tokens / len(of), accepted / verified if verified else 0.0)
