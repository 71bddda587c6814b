"""Sections: what is due to what, latencies, and every assumption."""

from collections.abc import Mapping, Sequence

from compare.measured import Measured
from compare.report.document import (
    Axis,
    Basis,
    Block,
    Cell,
    Link,
    Name,
    Number,
    Paragraph,
    Plot,
    Section,
    Series,
    Table,
    Waterfall,
)
from compare.report.numbers import assumed, basis_of, modelled, said, sourced
from compare.scenario import LOSSES, LossesSection
from compare.simulated import PERCENTILES, Served
from compare.study import Study, joules
from hardware.figure import Figure

SIMULATED = "simulation of the modelled steps with Poisson arrivals (compare/fast.py)"


def attribution(study: Study) -> Section:
    """Each step of the scenario has one thing more than the one before."""
    speed = study.scenario.decide_at
    found = [(name, study.best(name, speed)) for name in study.scenario.steps]
    steps = tuple((name, modelled(0.0 if best is None else 1e6 / joules(best), "tok/s/MW")) for name, best in found)
    rows: list[tuple[Cell, ...]] = []
    before: float | None = None
    for name, best in found:
        value = None if best is None else 1e6 / joules(best)
        factor = modelled(value / before, "times") if value and before else None
        rows.append((Name(name), None if value is None else modelled(value, "tok/s/MW"), factor))
        before = value
    table = Table("steps", "The same in numbers", ("system", "gives", "over the one before"), tuple(rows))
    about = Paragraph(
        (
            "Output tokens per second of a megawatt at ",
            assumed(speed, "tok/s of each user"),
            ", one thing more in each step. Zero is a system that is too slow for that: what comes after it is no "
            "factor, it is the difference between possible and impossible.",
        )
    )
    axis = Axis(f"output tokens per second of a megawatt ({study.scenario.power})", "tok/s/MW")
    waterfall = Waterfall("waterfall", "What is due to what", axis, steps)
    return Section("attribution", "What is due to what", (about, waterfall, table))


def latency(study: Study, served: Mapping[tuple[str, int], Served], measured: Mapping[str, Measured]) -> Section:
    blocks: list[Block] = [Paragraph(_latency_text(study))] if served else []
    series = []
    rows: list[tuple[Cell, ...]] = []
    for name in study.scenario.systems:
        own = {load: one for (system, load), one in served.items() if system == name}
        if own:
            notes = tuple(f"{one.requests} requests" for one in own.values())
            xs, ys = tuple(map(float, own)), tuple(1e3 * one.ttft["90"] for one in own.values())
            series.append(Series(name, xs, ys, Basis.SIMULATED, SIMULATED, notes=notes))
        for load, one in own.items():
            rates = (_simulated(one.user_rate, "tok/s"), modelled(one.steady_rate, "tok/s"))
            rows.append(
                (Name(name), assumed(load, ""), *_times(one.ttft, one.end_to_end, Basis.SIMULATED, SIMULATED), *rates)
            )
    for name, other in measured.items():
        xs, ys = zip(*((run.concurrency, 1e3 * run.ttft["90"]) for run in other.runs), strict=True)
        basis = basis_of(other)
        series.append(Series(name, xs, ys, basis, other.source))
        for run in other.runs:
            told = Number(run.user_rate, "tok/s", basis, other.source)
            at_once = Number(run.concurrency, "", basis, other.source)
            times = _times(run.ttft, run.end_to_end, basis, other.source)
            rows.append((Name(name), at_once, *times, told, None))
    names = [f"{what}, {which}" for what in ("first token", "whole answer") for which in ("median", "tail", "far tail")]
    columns = ("system", "requests at once", *names, "each user", "in steady state")
    note: Sequence[str | Number] = (
        "Median, tail and far tail are the percentiles ",
        assumed(PERCENTILES[0], ""),
        ", ",
        assumed(PERCENTILES[1], ""),
        " and ",
        assumed(PERCENTILES[2], ""),
        ". Systems without a prefill pool are not simulated: the fast simulator mixes no prompts into decode steps.",
    )
    axes = Axis("requests under way in a decode replica", "", log=True), Axis("first token, tail", "ms", log=True)
    if series:
        blocks.append(Plot("ttft", "Time to the first token", *axes, tuple(series)))
    blocks.append(Table("latency", "First tokens and whole answers", columns, tuple(rows), tuple(note)))
    return Section("latency", "First token and whole answer", tuple(blocks))


def _latency_text(study: Study) -> tuple[str | Number, ...]:
    workload = study.scenario.workload
    return (
        "Poisson arrivals of prompts of ",
        assumed(workload.input_tokens, "tokens"),
        " (of which ",
        assumed(100 * workload.cached_share, "%"),
        " in a prefill replica's cache) and answers of ",
        assumed(workload.output_tokens, "tokens"),
        ", at the rate that keeps so many requests under way in a decode replica in steady state. Queues for prefill, "
        "the handoff of pages and steps that wait for each other are in these times; the network to users is not.",
    )


def _times(ttft: Mapping[str, float], whole: Mapping[str, float], basis: Basis, source: str) -> list[Number]:
    first = [Number(1e3 * ttft[str(percentile)], "ms", basis, source) for percentile in PERCENTILES]
    return first + [Number(whole[str(percentile)], "s", basis, source) for percentile in PERCENTILES]


def _simulated(value: float, unit: str) -> Number:
    return Number(value, unit, Basis.SIMULATED, SIMULATED)


def assumptions(study: Study) -> Section:
    """Every figure of every device that a result rests on, losses, and what the scenario takes for granted."""
    blocks: list[Block] = [_scenario(study), _losses(study)]
    study.rests_on  # noqa: B018  all figures are asked for, so that they are in `used`
    for device, numbers in study.built.numbers.items():
        assumed_here = study.scenario.devices[device].assumed if device in study.scenario.devices else {}
        rows = tuple(_figure(name, figure, assumed_here.get(name)) for name, figure in sorted(numbers.used.items()))
        columns = ("figure", "value", "source")
        title = "figures that results rest on"
        blocks.append(Table(f"device-{_key(device)}", title, columns, rows, subject=numbers.device.name))
        blocks += [Paragraph((Name(note),)) for note in numbers.device.notes]
    return Section("assumptions", "Assumptions", tuple(blocks))


def _key(device: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in device.lower())


def _figure(name: str, figure: Figure, taken: float | None) -> tuple[Cell, ...]:
    source = sourced(figure.source)
    assert isinstance(source, Link | Name)
    value = said(figure) if taken is None else assumed(taken, figure.unit)
    return Name(name), value, source


def _losses(study: Study) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for device in study.built.numbers:
        if device not in study.scenario.devices:
            continue
        section, losses = study.scenario.devices[device].losses, study.built.losses(device)
        fitted = isinstance(section, str)
        basis = Basis.INFERRED if fitted else Basis.ASSUMED
        values = (losses.compute, losses.memory, losses.network, 1e6 * losses.layer_seconds, 1e6 * losses.step_seconds)
        cells: list[Cell] = []
        for name, value in zip(LOSSES, values, strict=True):
            low, high = _range(section, name) if isinstance(section, LossesSection) else (None, None)
            kind = Basis.UNKNOWN if low is not None else basis
            cells.append(Number(value, "us" if name.endswith("_us") else "", kind, losses.source, low, high))
        rows.append((Name(device), *cells, Name(losses.source)))
    columns = ("device", "of arithmetic", "of bandwidth", "of network", "each layer", "each step", "where from")
    note = ("Shares of the data sheet's figures that steps get, and times that depend on no work.",)
    return Table("losses", "What steps get of a device's figures", columns, tuple(rows), note)


def _range(section: LossesSection, name: str) -> tuple[float | None, float | None]:
    value = getattr(section, name)
    return value if isinstance(value, tuple) else (None, None)


def _scenario(study: Study) -> Table:
    scenario = study.scenario
    acceptance = scenario.acceptance
    rows: list[tuple[Cell, ...]] = [
        ("prompt", assumed(scenario.workload.input_tokens, "tokens")),
        ("of it in a prefill replica's cache", assumed(100 * scenario.workload.cached_share, "%")),
        ("answer", assumed(scenario.workload.output_tokens, "tokens")),
        ("all traffic", assumed(scenario.traffic, "output tok/s")),
        ("of the prefill pool's capacity, used", assumed(100 * scenario.utilisation, "%")),
        ("energy, where cost follows from price", assumed(scenario.energy, "$/kWh")),
        ("tokens of a step with one next-token draft", _published(acceptance.mtp, acceptance.source)),
        ("how well confidences tell (area under the curve)", _published(acceptance.auc, acceptance.source)),
        ("layers of DSpark's drafter", _published(acceptance.layers, acceptance.source)),
    ]
    for length in acceptance.dspark:
        rows.append(("tokens of a step with one DSpark draft more", _published(length, acceptance.source)))
    capital = scenario.capital
    if isinstance(capital, tuple):
        middle = (capital[0] * capital[1]) ** 0.5
        why = "from price and owning cost of devices that have both, energy left out"
        rows.append(("owning what costs a million", Number(middle, "$/h", Basis.UNKNOWN, why, *capital)))
    else:
        rows.append(("owning what costs a million", assumed(capital, "$/h")))
    return Table("scenario", "What the scenario takes for granted", ("what", "value"), tuple(rows))


def _published(value: float, source: str) -> Number:
    return Number(value, "", Basis.MEASURED, source)
