"""What became of drafts, round by round, and the figures that follow: from recorded steps (decode/record.py).

Definitions are DeepSpec's evaluation's, where it has one:

    accepted length   tokens that a round gives: accepted drafts and the target's own token behind them. A round in
                      which an accepted draft ends the answer is cut there, and has no token of the target's own.
    acceptance        by place: how often the draft there was accepted if those before it were
    ECE, AUC          of the cumulative product of confidences against "accepted up to here", at each place, with 20
                      and 1,000 bins; over all places their means, weighted by drafts. Places behind the end of an
                      answer do not count

Rounds in which max_tokens left room for fewer drafts than a block has say nothing of the drafter and are left out.
K = drafts of a block
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decode.record import StepRecord
from train.calibrate import Reliability, Values, auc, ece, reliability

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(20))


@dataclass(frozen=True)
class Answer:
    """What a request was given: `tokens` from position `start` on. `ended`: the last of them is an end token."""

    start: int
    tokens: Sequence[int]
    ended: bool

    @property
    def end(self) -> int | None:
        """The position of the end token."""
        return self.start + len(self.tokens) - 1 if self.ended else None


@dataclass(frozen=True)
class Round:
    """The drafts of one request in one step. `places` of them count; `confidence` is empty without such a head."""

    places: int
    accepted: int
    ended: bool
    confidence: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return self.accepted + (not self.ended)


def rounds(steps: Iterable[StepRecord], answers: Mapping[str, Answer], block_length: int) -> list[Round]:
    """Of requests whose answers are known; the steps must have been recorded with every draft verified."""
    found = []
    for step in steps:
        for r, name in enumerate(step.requests):
            if name not in answers or step.lengths[r] < block_length:
                continue
            end, position, accepted = answers[name].end, step.positions[r], step.accepted[r]
            ended = end is not None and end <= position + accepted
            places = end - position if ended and end is not None else block_length
            confidence = tuple(step.confidence[r][:places]) if step.confidence else ()
            found.append(Round(places, min(accepted, places), ended, confidence))
    return found


@dataclass(frozen=True)
class Sweep:
    """Verifying only drafts whose survival is at least `threshold`: drafts verified and tokens given in a round, and
    the share of verified drafts that were accepted."""

    threshold: float
    verified: float
    tokens: float
    accepted: float


@dataclass(frozen=True)
class Figures:
    """Of a list of rounds. Those of confidence are empty or None for a drafter that has none."""

    rounds: int
    accepted_length: float
    accepted_length_error: float  # standard error of the mean
    acceptance: list[float]
    reached: list[int]
    ece: float | None
    auc: float | None
    ece_by_place: list[float]
    auc_by_place: list[float]
    sweep: list[Sweep]
    reliability: list[Reliability]


def figures(of: Sequence[Round]) -> Figures:
    """Raises ValueError without a round."""
    if not of:
        raise ValueError("no round had room for a whole block: raise max_tokens")
    block_length = max(r.places for r in of)
    tokens = np.array([r.tokens for r in of], float)
    reached = [sum(r.places > k and r.accepted >= k for r in of) for k in range(block_length)]
    taken = [sum(r.accepted > k for r in of) for k in range(block_length)]
    said: list[tuple[Values, NDArray[np.bool_]]] = []
    sweep: list[Sweep] = []
    if all(r.confidence for r in of):
        said_NK = survival(of)
        came_NK = np.array([[r.accepted > k for k in range(said_NK.shape[1])] for r in of])
        said = [(s[s >= 0], c[s >= 0]) for s, c in zip(said_NK.T, came_NK.T, strict=True)]
        sweep = [swept(of, said_NK, threshold) for threshold in THRESHOLDS]
    errors, areas = [ece(*pair) for pair in said], [auc(*pair) for pair in said]
    drafts = [len(s) for s, _ in said]
    return Figures(
        rounds=len(of),
        accepted_length=float(tokens.mean()),
        accepted_length_error=float(tokens.std() / len(of) ** 0.5),
        acceptance=[t / r if r else 0.0 for t, r in zip(taken, reached, strict=True)],
        reached=reached,
        ece=float(np.average(errors, weights=drafts)) if said else None,
        auc=float(np.average(areas, weights=drafts)) if said else None,
        ece_by_place=errors,
        auc_by_place=areas,
        sweep=sweep,
        reliability=reliability(*(np.concatenate(column) for column in zip(*said, strict=True))) if said else [],
    )


def survival(of: Sequence[Round]) -> Values:
    """Of each round's drafts as foreseen [rounds, K]; -1 at places that do not count."""
    most = max(r.places for r in of)
    return np.array([[*np.cumprod(r.confidence), *[-1.0] * (most - r.places)] for r in of])


def swept(of: Sequence[Round], survival_NK: Values, threshold: float) -> Sweep:
    """Had each block been cut before the first draft that is less likely to survive."""
    length_N = (survival_NK >= threshold).sum(axis=1)
    accepted_N = np.minimum([r.accepted for r in of], length_N)
    ended_N = np.array([r.ended for r in of]) & (accepted_N == [r.accepted for r in of])
    verified, accepted = int(length_N.sum()), int(accepted_N.sum())
    given = accepted + int((~ended_N).sum())
    return Sweep(threshold, verified / len(of), given / len(of), accepted / verified if verified else 0.0)
