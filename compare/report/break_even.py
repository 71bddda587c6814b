"""Sections: from which share of traffic a contender pays, and its smallest replica."""

import math
from collections.abc import Sequence

from compare.report.document import (
    Axis,
    Basis,
    Block,
    Cell,
    Heat,
    Mark,
    Name,
    Number,
    Paragraph,
    Plot,
    ReportSection,
    Series,
    Table,
    TextPart,
)
from compare.report.numbers import STEADY, assumed, key_of, modelled, percent
from compare.study import breakeven
from compare.study.study import Rivals, Study
from compare.study.unknowns import Unknown, unknowns
from compare.study.verdict import Verdict, VerdictKind

RACK = 72  # GPUs of an NVL72
ATTACHED, GROQ_SHARE = 0.625, 0.25
POD = "Vera Rubin POD: ten LPX racks beside sixteen NVL72 (Morgan Stanley, COMPUTEX)"
KEYNOTE = "GTC keynote, as noted in https://investments-8ba.pages.dev/nvidia/gtc-2026"
GRID = 5
PRICES, POWERS, HOPS = ("rack_price", "price", "cost"), ("rack_power", "power"), ("bridge", "hop", "layer_us")
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)


def break_even(study: Study, found: Sequence[Verdict]) -> ReportSection:
    blocks: list[Block] = [
        Paragraph.of(
            "A share of all traffic is premium: its users get at least a given number of tokens per second each. "
            "Contenders come in whole replicas, which must hold the model however low the load is. A contender "
            "pays "
            "from the share whose tokens cost as much without it as one replica costs. The charts show that share "
            "over unpublished figures; those that are not on an axis are in the middle of their ranges."
        )
    ]
    for one in found:
        if one.says in (VerdictKind.TOO_SLOW, VerdictKind.NEITHER):
            continue
        if one.says is VerdictKind.ALONE:
            speed = assumed(one.rivals.user_rate, "tok/s of each user")
            blocks.append(
                Paragraph.of(Name(one.rivals.contender), " is needed from the first user who requires ", speed, ".")
            )
        else:
            blocks += _heats(study, one)
        blocks += _attached(study, one)
    return ReportSection("break-even", "Break-even", tuple(blocks))


def _heats(study: Study, one: Verdict) -> list[Block]:
    """Over price and hop, for each end and the middle of power."""
    price, power, hop = (_axis(study, one.rivals, figures) for figures in (PRICES, POWERS, HOPS))
    if price is None:
        return []
    across = hop or power
    if across is None:
        return []
    powers = _values(power, 3) if power is not None and power is not across else []
    grids = [_grid(study, one, price, across, {power: watts}) for watts in powers if power is not None]
    if not grids or grids[0] == grids[-1]:  # power changes nothing, as where the published cost has it already
        return [_heat(one, price, across, _grid(study, one, price, across, {}), "")]
    ends = ("least", "middle", "most")
    return [_heat(one, price, across, grid, end) for grid, end in zip(grids, ends, strict=True)]


Grid = tuple[tuple[float | None, ...], ...]


def _grid(study: Study, one: Verdict, price: Unknown, across: Unknown, fixed: dict[Unknown, float]) -> Grid:
    prices, others = _values(price, GRID), _values(across, GRID)
    return tuple(tuple(_at(study, one, {**fixed, price: x, across: y}) for x in prices) for y in others)


def _heat(one: Verdict, price: Unknown, across: Unknown, grid: Grid, power: str) -> Block:
    at = f", at its {power} power" if power else ""
    name = str(one.rivals)
    if all(value is None for row in grid for value in row):
        return Paragraph.of(
            Name(name),
            " never pays, whatever ",
            Name(price.name),
            " and ",
            Name(across.name),
            f" are{at}, all else in the middle.",
        )
    return Heat(
        f"break-even-{key_of(name)}{'-' + power if power else ''}",
        f"share of traffic from which it pays{at}",
        Axis(price.name, price.unit, log=True),
        Axis(across.name, across.unit, log=True),
        Axis("share of traffic", "%"),
        tuple(_values(price, GRID)),
        tuple(_values(across, GRID)),
        grid,
        Basis.MODELLED,
        STEADY,
        "never pays",
        subject=name,
    )


def _axis(study: Study, rivals: Rivals, figures: Sequence[str]) -> Unknown | None:
    """Return the first unknown of these figures that only the contender depends on."""
    own = {one.name: one for one in unknowns(study, rivals.contender)}
    for one in unknowns(study, rivals.against):
        own.pop(one.name, None)
    for figure in figures:
        for key, unknown in own.items():
            if key.endswith(f": {figure}"):
                return unknown
    return None


def _values(unknown: Unknown | None, count: int) -> list[float]:
    assert unknown is not None
    low, high = unknown.bounds
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def _at(study: Study, one: Verdict, values: dict[Unknown, float]) -> float | None:
    scenario = study.scenario
    for unknown, value in values.items():
        assert unknown.at is not None, unknown.name
        scenario = unknown.at(value)(scenario)
    share = breakeven.at(study.varied(scenario), one.rivals)
    return None if share is None else 100 * share


def _attached(study: Study, one: Verdict) -> list[Block]:
    """Racks of a helper for each rack of GPUs, over the share of premium traffic, with what vendors attach."""
    scenario = study.scenario
    standard = study.best(one.rivals.against, min(scenario.interactivity))
    premium = study.best(one.rivals.contender, one.rivals.user_rate)
    if standard is None or premium is None:
        return []
    dedicated = premium.point.setup.helper or premium.point.setup.decode
    if not dedicated.numbers.has("rack_units") or dedicated.numbers.device.kind not in ("lpu", "wafer"):
        return []
    rack = dedicated.numbers.get("rack_units")
    shares = [i / 20 for i in range(1, 21)]
    rates = []
    for share in shares:
        replicas = math.ceil(share * scenario.traffic / premium.point.throughput)
        gpus = (1 - share) * scenario.traffic / standard.per_unit
        gpus += sum(part.units * replicas for part in premium.point.machines if part is not dedicated)
        rates.append(dedicated.units * replicas / rack / (gpus / RACK))
    unit = dedicated.numbers.device.name
    marks = [
        Mark("Vera Rubin POD", "y", Number(ATTACHED, "", Basis.ESTIMATE, POD)),
        Mark("keynote's share", "x", Number(100 * GROQ_SHARE, "%", Basis.UNVERIFIED, KEYNOTE)),
    ]
    if one.share[0]:
        marks.append(Mark("pays from here", "x", percent(one.share[0])))
    plot = Plot(
        f"attach-{key_of(str(one.rivals))}",
        "racks beside each rack of GPUs",
        Axis("share of traffic that is premium", "%"),
        Axis(f"{unit}, racks (or wafers) for each rack of GPUs", "", log=True),
        (Series(one.rivals.contender, tuple(100 * share for share in shares), tuple(rates), Basis.MODELLED, STEADY),),
        tuple(marks),
        subject=str(one.rivals),
    )
    return [plot]


def smallest(study: Study) -> ReportSection:
    """Show every system's smallest replica at each deciding speed, and how much of it is idle."""
    return ReportSection(
        "smallest", "Smallest replica", tuple(_smallest(study, speed) for speed in study.scenario.decide_at)
    )


def _smallest(study: Study, speed: float) -> Table:
    traffic = study.scenario.traffic
    rows: list[tuple[Cell, ...]] = []
    for name in study.scenario.systems:
        best = min(study.ways(name, speed), key=lambda way: study.economics.watts(way.point.setup.parts), default=None)
        if best is None:
            continue
        point = best.point
        parts = ", ".join(f"{part.units:g} {part.numbers.device.unit}s" for part in point.setup.parts)
        own = study.economics.watts(point.setup.parts) / 1e3
        cost = None
        if best.dollars_per_second is not None:
            cost = modelled(3600 * study.economics.dollars_per_second(point.setup.parts), "$/h")
        idle = [_idle(share * traffic, point.throughput) for share in SHARES]
        row = (
            Name(parts),
            modelled(own, "kW"),
            cost,
            modelled(point.throughput, "tok/s"),
            modelled(point.requests, ""),
        )
        rows.append((Name(name), *row, *(percent(share) for share in idle)))
    columns: tuple[TextPart, ...] = (
        "system",
        "a decode replica",
        "draws",
        "costs",
        "gives at this speed",
        "requests at once",
        *(assumed(100 * share, "% premium, idle") for share in SHARES),
    )
    note = (
        "A replica at ",
        assumed(speed, "tok/s of each user"),
        ". Idle: the unused share of all replicas needed, if that share of ",
        assumed(traffic, "tok/s"),
        " is premium and no other traffic fills it. GPUs that stand idle there can serve other traffic; what holds one "
        "model's weights in SRAM cannot. Systems that are too slow are left out.",
    )
    key, subject = f"smallest-{key_of(f'{speed:g}')}", f"{speed:g} tok/s of each user"
    return Table(key, "smallest replica and stranded capacity", columns, tuple(rows), note, subject)


def _idle(demand: float, throughput: float) -> float:
    return 1 - demand / (math.ceil(demand / throughput) * throughput)
