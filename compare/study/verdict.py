"""The verdict whether a contender pays: at all values of the unknown figures, or undecidable from public ones."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from compare.study import breakeven
from compare.study.study import Rivals, Study, dollars
from compare.study.unknowns import Effect, StudyValue, Unknown, effects, threshold, together, unknowns, uses

MAX_CONDITIONS = 3


class VerdictKind(enum.StrEnum):
    """`PAYS`, `NOT`, `TOO_SLOW` and `ALONE` hold wherever the unknown figures lie."""

    PAYS = "pays"
    NOT = "does not pay"
    TOO_SLOW = "too slow"  # the contender does not get there
    ALONE = "alone"  # what it is held against does not get there
    NEITHER = "neither"
    OPEN = "not decidable from public figures"


@dataclass(frozen=True)
class Condition:
    """The verdict turns where this passes `value`, all else in the middle; `below`: it pays below that."""

    unknown: Unknown
    value: float
    below: bool


@dataclass(frozen=True)
class Verdict:
    """`ratio`: the contender's $ per million tokens over the other's, with all that is unknown in the middle, at the
    ends that favour it, and at those that do not. Infinite: it is too slow. 0: the other is. `share`: likewise, of all
    traffic, from which it pays; None: from none. `conditions` are of unknown figures, `turns` of the workload.
    `effects`: of both, on the ratio, the largest first.
    """

    rivals: Rivals
    says: VerdictKind
    ratio: tuple[float, float, float]
    share: tuple[float | None, float | None, float | None]
    effects: Sequence[Effect]
    conditions: Sequence[Condition]
    turns: Sequence[Effect]


def ratio(rivals: Rivals) -> StudyValue:
    """$ of a million tokens, the contender's over the other's, without regard to how little is asked of a replica.
    Infinite if the contender is too slow, 0 if the other is."""

    def result(study: Study) -> float:
        contender = _reached(study, rivals.contender, rivals.user_rate)
        against = _reached(study, rivals.against, rivals.user_rate)
        if contender is None:
            return math.inf
        return 0.0 if against is None else contender / against

    return result


def verdict(study: Study, rivals: Rivals) -> Verdict:
    result = ratio(rivals)
    own = unknowns(study, rivals.contender, rivals.against)
    favourable, unfavourable = together(study, effects(study, _strained(rivals), own))
    studies = (study, favourable, unfavourable)
    values = [result(one) for one in studies]
    says = _says(studies, rivals, values)
    found = effects(study, result, own)
    other = effects(study, result, uses(study.scenario))
    conditions = []
    if says is VerdictKind.OPEN:
        turning = [(effect, threshold(study, result, effect.unknown, 1.0)) for effect in found]
        conditions = [Condition(e.unknown, value, e.low <= 1.0) for e, value in turning if value is not None]
    shares = [breakeven.at(one, rivals) for one in studies]
    return Verdict(
        rivals,
        says,
        (values[0], values[1], values[2]),
        (shares[0], shares[1], shares[2]),
        sorted([*found, *other], key=lambda effect: effect.size, reverse=True),
        conditions[:MAX_CONDITIONS],
        [effect for effect in other if (effect.low <= 1.0) != (effect.high <= 1.0)],
    )


def _says(studies: Sequence[Study], rivals: Rivals, values: Sequence[float]) -> VerdictKind:
    _, favourable, unfavourable = values
    if favourable == math.inf:
        reached = any(_reached(study, rivals.against, rivals.user_rate) is not None for study in studies)
        return VerdictKind.TOO_SLOW if reached else VerdictKind.NEITHER
    if unfavourable == 0.0:
        return VerdictKind.ALONE
    if unfavourable <= 1.0:
        return VerdictKind.PAYS
    return VerdictKind.NOT if favourable > 1.0 else VerdictKind.OPEN


def _reached(study: Study, name: str, user_rate: float) -> float | None:
    best = study.best(name, user_rate)
    return None if best is None else dollars(best)


def _strained(rivals: Rivals) -> StudyValue:
    """Return a ratio that is never 0 or infinite: it tells which end of an unknown is better where a system is too slow
    at both."""

    def result(study: Study) -> float:
        contender, against = (study.strained(n, rivals.user_rate, dollars) for n in (rivals.contender, rivals.against))
        return contender / against

    return result
