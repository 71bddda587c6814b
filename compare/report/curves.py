"""Sections: speed against throughput, of a GPU, of a megawatt, of a dollar; and the same in tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compare.report.document import Axis, Basis, Cell, Name, Paragraph, Plot, ReportSection, Series, Table, TextPart
from compare.report.numbers import STEADY, assumed, basis_of, percent, ranged
from compare.study.economics import per_megawatt, per_million
from compare.study.measured import MeasuredSystem
from compare.study.study import Best, Measure, Study, dollars, joules
from compare.study.unknowns import span

USER = Axis("each user's tokens per second", "tok/s", log=True)


@dataclass(frozen=True)
class View:
    """A way to look at throughput."""

    key: str
    title: str
    axis: Axis
    of: Measure
    about: str
    slow: float = 0.0
    """What it is of a system that is too slow."""


def sections(study: Study, measured: Mapping[str, MeasuredSystem]) -> list[ReportSection]:
    views = [_per_unit(study), _per_megawatt(study)]
    if all(best.per_million is not None for name in study.scenario.systems for best in study.curve(name)[:1]):
        views.append(_per_dollar())
    found = [(_series_of(study, measured, view), view) for view in views]
    return [_section(study, series, view) for series, view in found if series]


def _per_unit(study: Study) -> View:
    about = (
        "All units of both pools are counted: GPUs, chips or wafers, and as much of the prefill pool as is needed. "
        "Units that help GPUs (LPUs) are not counted here: the next two sections have their power and cost."
    )
    axis = Axis("output tokens per second of each unit", "tok/s", log=True)
    return View("per-unit", "Throughput of a unit against speed", axis, lambda best: best.per_unit, about)


def _per_megawatt(study: Study) -> View:
    basis = study.scenario.power
    what = "all in, as the site's meter measures it" if basis == "all-in" else "of the chips alone"
    axis = Axis(f"output tokens per second of a megawatt ({basis})", "tok/s/MW", log=True)
    about = (
        f"Power is {what}. Published bases differ: some devices' figures are the rack's own draw, without cooling "
        "(Assumptions has each). Ranges are over all unpublished figures."
    )
    return View("per-megawatt", "Throughput of a megawatt against speed", axis, lambda best: best.per_megawatt, about)


def _per_dollar() -> View:
    axis = Axis("dollars of a million output tokens", "$", log=True)
    about = (
        "The cost of owning, all in: analysts' estimates; for devices with an estimated price, capital and energy. It "
        "includes the prefill pool and so the cost of prompts. Ranges are over all unpublished figures."
    )
    return View("per-dollar", "Cost at a fixed speed", axis, dollars, about, math.inf)


def _series_of(study: Study, measured: Mapping[str, MeasuredSystem], view: View) -> list[Series]:
    series = [_series(study, name, view) for name in study.scenario.systems]
    return series + [one for name in measured if (one := _measured(name, measured[name], view)) is not None]


def _section(study: Study, series: Sequence[Series], view: View) -> ReportSection:
    plot = Plot(f"{view.key}-curve", view.title, USER, view.axis, tuple(series))
    blocks: list[Paragraph | Plot | Table] = [Paragraph.of(view.about), plot]
    if study.scenario.systems:
        blocks.append(_table(study, view))
        if view.key == "per-megawatt":
            blocks.append(_prefill_table(study))
    return ReportSection(view.key, view.title, tuple(blocks))


def _series(study: Study, name: str, view: View) -> Series:
    curve = study.curve(name)
    notes = tuple(_note(best) for best in curve)
    rates, values = zip(*((best.point.user_rate, view.of(best)) for best in curve), strict=True)
    return Series(name, rates, values, Basis.MODELLED, STEADY, notes=notes)


def _note(best: Best) -> str:
    point = best.point
    parts = " + ".join(f"{part.units:g} {part.numbers.device.name}" for part in point.setup.parts)
    prefill = "" if point.setup.prefill_part is None else f", {point.prefill_replicas:.2g} prefill replicas"
    return f"{point.requests} requests on {parts}{prefill}; {point.verify_tokens:.2f} tokens verified of each"


def _measured(name: str, measured: MeasuredSystem, view: View) -> Series | None:
    """None if nothing is known of what its device draws or costs."""
    values: list[tuple[float, float]] = []
    for run in measured.runs:
        if view.key == "per-unit":
            values.append((run.user_rate, run.throughput / measured.units))
        elif measured.watts is not None and view.key == "per-megawatt":
            values.append((run.user_rate, per_megawatt(run.throughput, measured.watts)))
        elif measured.dollars_per_second is not None and view.key == "per-dollar":
            values.append((run.user_rate, per_million(run.throughput, measured.dollars_per_second)))
    if not values:
        return None
    rates, found = zip(*sorted(values), strict=True)
    return Series(name, rates, found, basis_of(measured), measured.source)


def _table(study: Study, view: View) -> Table:
    rates = study.scenario.interactivity
    rows = []
    for name in study.scenario.systems:
        rows.append((Name(name), *_cells(study, name, rates, view)))
    columns: tuple[TextPart, ...] = ("system", *(assumed(rate, "tok/s of each user") for rate in rates))
    note = ("Empty: too slow for that, with one request on a replica of the sizes that the scenario allows.",)
    return Table(f"{view.key}-table", f"{view.axis.title}, at a fixed speed", columns, tuple(rows), note)


def _prefill_table(study: Study) -> Table:
    """A gain of decode is a gain of what is not prefill."""
    rates = study.scenario.interactivity
    rows = []
    for name in study.scenario.systems:
        found = [study.best(name, rate) for rate in rates]
        rows.append((Name(name), *(None if best is None else percent(_prefill_share(study, best)) for best in found)))
    columns: tuple[TextPart, ...] = ("system", *(assumed(rate, "tok/s of each user") for rate in rates))
    note = (
        "Speculation and decode hardware change only the rest: gains that papers state for decode alone are smaller by "
        "this in the whole. A system with one pool has no share of its own.",
    )
    return Table("prefill-share", "Share of the power that prefill takes", columns, tuple(rows), note)


def _prefill_share(study: Study, best: Best) -> float:
    own = study.economics.watts(best.point.setup.parts)
    return 1 - own / best.watts


def _cells(study: Study, name: str, rates: Sequence[float], view: View) -> list[Cell]:
    unit = view.axis.unit
    if view.key == "per-unit":
        return [ranged([study], name, rate, view.of, unit, view.slow) for rate in rates]
    measure = dollars if view.key == "per-dollar" else joules
    studies = [study, *span(study, name, study.scenario.decide_at[0], measure)]
    return [ranged(studies, name, rate, view.of, unit, view.slow) for rate in rates]
