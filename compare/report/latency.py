"""Section: first tokens and whole answers, simulated and measured."""

from collections.abc import Mapping, Sequence

from compare.report.document import (
    Axis,
    Basis,
    Block,
    Cell,
    Name,
    Number,
    Paragraph,
    Plot,
    ReportSection,
    Series,
    Table,
)
from compare.report.numbers import assumed, basis_of, modelled
from compare.study.measured import MeasuredSystem
from compare.study.simulated import PERCENTILES, LoadResult
from compare.study.study import Study

SIMULATED = "simulation of the modelled steps in a closed loop (compare/study/simulated.py)"


def latency(
    study: Study, served: Mapping[tuple[str, int], LoadResult], measured: Mapping[str, MeasuredSystem]
) -> ReportSection:
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
            rate = Number(run.user_rate, "tok/s", basis, other.source)
            at_once = Number(run.concurrency, "", basis, other.source)
            times = _times(run.ttft, run.end_to_end, basis, other.source)
            rows.append((Name(name), at_once, *times, rate, None))
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
    return ReportSection("latency", "First token and whole answer", tuple(blocks))


def _latency_text(study: Study) -> tuple[str | Number, ...]:
    workload = study.scenario.workload
    return (
        "Prompts of ",
        assumed(workload.input_tokens, "tokens"),
        " (of which ",
        assumed(100 * workload.cached_share, "%"),
        " in a prefill replica's cache) and answers of ",
        assumed(workload.output_tokens, "tokens"),
        " in the mean, up to half shorter or longer. A constant number of requests is under way for each decode "
        "replica, "
        "those in prefill included: each answer is followed by the next request. These times include queues for "
        "prefill, the handoff of pages and steps that wait for each other; they do not include the network to users.",
    )


def _times(ttft: Mapping[str, float], whole: Mapping[str, float], basis: Basis, source: str) -> list[Number]:
    first = [Number(1e3 * ttft[str(percentile)], "ms", basis, source) for percentile in PERCENTILES]
    return first + [Number(whole[str(percentile)], "s", basis, source) for percentile in PERCENTILES]


def _simulated(value: float, unit: str) -> Number:
    return Number(value, unit, Basis.SIMULATED, SIMULATED)
