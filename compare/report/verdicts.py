"""Sections: the verdict in plain words, and what it depends on."""

import math
from collections.abc import Sequence

from compare.report.document import (
    Axis,
    Basis,
    Block,
    Cell,
    Name,
    Number,
    Paragraph,
    ReportSection,
    Table,
    TextPart,
    Tornado,
)
from compare.report.numbers import assumed, key_of, modelled, percent
from compare.study.study import Study
from compare.study.unknowns import Effect
from compare.study.verdict import Verdict, VerdictKind


def verdicts(study: Study, found: Sequence[Verdict]) -> ReportSection:
    scenario = study.scenario
    blocks: list[Block] = [
        Paragraph.of(
            "Each contender is compared with the system one would have without it, by the cost of a million output "
            "tokens. Unpublished figures were set to both ends of their ranges: a verdict without a condition "
            "holds at all of them. These ranges do not include the error of the model itself: see Predicted "
            "against published."
        )
    ]
    for speed in scenario.decide_at:
        blocks.append(Paragraph.of("At ", assumed(speed, "tok/s of each user"), ":"))
        blocks += [Paragraph(tuple(_words(one)), "verdict") for one in found if one.rivals.user_rate == speed]
    rows = tuple(_row(one) for one in found)
    columns = (
        "contender",
        "against",
        "at",
        "verdict",
        "its $ over the other's",
        "pays from this share of traffic",
        "at the ends that favour it",
        "at the ends that do not",
    )
    note = (
        "Infinite: too slow at that end. Zero: the other is. Empty: at no share. Shares are of ",
        assumed(scenario.traffic, "tok/s"),
        " in all.",
    )
    blocks.append(Table("verdicts", "All verdicts", columns, rows, note))
    return ReportSection("verdict", "Verdict", tuple(blocks))


def _row(one: Verdict) -> tuple[Cell, ...]:
    shares = (None if share is None else percent(share) for share in one.share)
    rivals = one.rivals
    names = (Name(rivals.contender), Name(rivals.against))
    return *names, assumed(rivals.user_rate, "tok/s"), str(one.says), _ratio(one), *shares


def _words(one: Verdict) -> list[TextPart]:
    name, other, speed = Name(one.rivals.contender), Name(one.rivals.against), assumed(one.rivals.user_rate, "tok/s")
    middle, favourable, unfavourable = one.ratio
    times = modelled(middle, "times", ends=(favourable, unfavourable))
    says: dict[VerdictKind, tuple[TextPart, ...]] = {
        VerdictKind.PAYS: (
            name,
            " pays: whatever the unknown figures are, it costs ",
            times,
            " what ",
            other,
            " does.",
        ),
        VerdictKind.NOT: (
            name,
            " does not pay: whatever the unknown figures are, it costs ",
            times,
            " what ",
            other,
            " does.",
        ),
        VerdictKind.ALONE: (name, " is alone: it gives a user ", speed, ", and ", other, " does not at any price."),
        VerdictKind.TOO_SLOW: (name, " is too slow: it does not give a user ", speed, ", and ", other, " does."),
        VerdictKind.NEITHER: ("Neither ", name, " nor ", other, " gives a user ", speed, "."),
        VerdictKind.OPEN: (name, " is not decidable from public figures: it costs ", times, " what ", other, " does."),
    }
    parts = list(says[one.says])
    if one.says is VerdictKind.OPEN and not one.conditions:
        parts.append(" No unknown figure alone changes that; several at their ends together do.")
    for condition in one.conditions:
        side = "below" if condition.below else "above"
        value = modelled(condition.value, condition.unknown.unit, "bisection, all else in the middle of its range")
        parts += [" It pays if ", Name(condition.unknown.name), f" is {side} ", value, ", all else in the middle."]
    if one.turns:
        parts.append(" Another use changes it: ")
        for number, effect in enumerate(one.turns):
            parts += ["; " if number else "", Name(effect.unknown.name), *_turn(effect)]
        parts.append(".")
    return parts


def _turn(effect: Effect) -> list[TextPart]:
    low, high = effect.unknown.bounds
    unit, why = effect.unknown.unit, effect.unknown.why
    ends = (assumed(low, unit, why), assumed(high, unit, why))
    return [
        " (",
        modelled(effect.low, "times"),
        " at ",
        ends[0],
        ", ",
        modelled(effect.high, "times"),
        " at ",
        ends[1],
        ")",
    ]


def _ratio(one: Verdict) -> Number:
    return modelled(one.ratio[0], "times", ends=one.ratio[1:])


def sensitivity(found: Sequence[Verdict]) -> ReportSection:
    blocks: list[Block] = [
        Paragraph.of(
            "The ratio of costs, a contender's over the other's, with one input at its lowest or highest and all "
            "others in the middle of their ranges: unpublished figures, and inputs that differ between users."
        )
    ]
    for one in found:
        key = key_of(str(one.rivals))
        finite = [effect for effect in one.effects if 0 < effect.low < math.inf and 0 < effect.high < math.inf]
        if finite and 0 < one.ratio[0] < math.inf:
            bars = tuple((e.unknown.name, modelled(e.low, "times"), modelled(e.high, "times")) for e in finite)
            base = modelled(one.ratio[0], "times")
            axis = Axis(f"its $ per token over those of {one.rivals.against}", "times", log=True)
            blocks.append(Tornado(f"tornado-{key}", "what its cost depends on", axis, base, bars, str(one.rivals)))
        rows = tuple(_effect(effect) for effect in one.effects)
        columns = ("what", "from", "to", "ratio at the low end", "at the high end", "why this range")
        if rows:
            note = ("Infinite: the contender is too slow then. Zero: the other is.",)
            blocks.append(Table(f"effects-{key}", "all effects", columns, rows, note, str(one.rivals)))
    return ReportSection("sensitivity", "What it depends on", tuple(blocks))


def _effect(effect: Effect) -> tuple[Cell, ...]:
    unknown = effect.unknown
    ends = tuple(Number(value, unknown.unit, Basis.UNKNOWN, unknown.why) for value in unknown.bounds)
    low, high = modelled(effect.low, "times"), modelled(effect.high, "times")
    return Name(unknown.name), *ends, low, high, Name(unknown.why)
