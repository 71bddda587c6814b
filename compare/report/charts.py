"""The charts of a report, each kind drawn once (compare/report/canvas.py saves it for the page and as PNG)."""

from __future__ import annotations

import math

from compare.report.canvas import INK, MISSING, MUTED, NARROW, PAPER, WIDE, Canvas, Size
from compare.report.document import Axis, Chart, Heat, Plot, Series, Tornado, Waterfall
from compare.report.style import (
    ABOVE,
    BELOW,
    COLOURS,
    NOTHING,
    Style,
    axis_titles,
    drawable,
    edges,
    empty,
    hover_text,
    lines,
    named,
    on_log,
    present,
    shown,
    tick,
    widest_first,
    written,
)

ON_DARK, ON_LIGHT = "#fefefe", "#010101"
"""Colours of the values in a heat map's cells, which are the same on light and dark pages."""
MAX_TICKS = 12


def svgs(chart: Chart, styles: dict[str, Style]) -> list[str]:
    """Return the chart for wide windows and for narrow ones, as SVG elements."""
    label = f"{chart.subject} {chart.title}: {axis_titles(chart)}".strip()
    return [draw(chart, styles, size).svg(label) for size in (WIDE, NARROW)]


def draw(chart: Chart, styles: dict[str, Style], size: Size = WIDE) -> Canvas:
    match chart:
        case Plot():
            return _plot(chart, styles, size)
        case Heat():
            return _heat(chart, size)
        case Waterfall():
            return _waterfall(chart, size)
        case Tornado():
            return _tornado(chart, size)


def _plot(plot: Plot, styles: dict[str, Style], size: Size) -> Canvas:
    canvas = Canvas(size, 4.2 if size is NARROW else 5.5, marks=sum(mark.axis == "x" for mark in plot.marks))
    axes = canvas.axes
    with canvas.style():
        canvas.scale(plot.x, "x")
        canvas.scale(plot.y, "y")
        names = list(dict.fromkeys(str(x) for series in plot.series for x in series.x)) if named(plot) else []
        for number, series in enumerate(plot.series):
            _series(canvas, plot, number, names, styles[series.name])
        if names:
            axes.set_xticks(range(len(names)), ["\n".join(lines(name, size.category)) for name in names])
            axes.grid(visible=False, axis="x")
        if not plot.y.log and all(y >= 0 for series in plot.series for y in series.y):
            axes.set_ylim(bottom=0)
        for which in ("x", "y"):
            for row, mark in enumerate(mark for mark in plot.marks if mark.axis == which):
                if drawable(mark.at.value, plot.x if which == "x" else plot.y):
                    canvas.mark(mark.name, which, mark.at.value, row)
        if empty(plot):
            axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", color=MUTED)
    return canvas


def _series(canvas: Canvas, plot: Plot, number: int, names: list[str], style: Style) -> None:
    series = plot.series[number]
    bars = [one for one in plot.series if one.style == "bars"]
    width = 0.75 / len(bars) if series in bars else 0.0
    left = width * bars.index(series) - 0.375 if series in bars else 0.0
    xs, ys = [], []
    for x, y, note in zip(series.x, series.y, series.notes or ("",) * len(series.x), strict=True):
        if drawable(x, plot.x):
            at = left + (names.index(str(x)) if names else float(x))
            xs.append(at + width / 2)
            ys.append(y if drawable(y, plot.y) else math.nan)
            if drawable(y, plot.y):
                text = _point_text(plot, series, x, y, note)
                canvas.target(text, (at, at + width), (0.0 if series in bars else y, y), number)
    name = f"\u200a{series.name}" if series.name.startswith("_") else series.name  # else no legend names it
    label = "\n".join(lines(f"{name} ({series.basis})", 48))
    if series in bars:
        hatch = "//" if series.dashed else None
        drawn = canvas.axes.bar(
            xs, ys, 0.95 * width, label=label, color=style.light, hatch=hatch, edgecolor=PAPER, linewidth=0
        )
        for bar in drawn:
            bar.set_gid(f"series-{number}")
        return
    look = "none" if series.style == "points" else "--" if series.dashed else "-"
    size = 5 if series.dashed else 8
    (line,) = canvas.axes.plot(
        xs, ys, linestyle=look, linewidth=2, color=style.light, label=label, marker=style.marker, markersize=size
    )
    line.set_gid(f"series-{number}")


def _point_text(plot: Plot, series: Series, x: float | str, y: float, note: str) -> str:
    first = x if isinstance(x, str) else f"{plot.x.title}: {shown(x, plot.x.unit)}"
    second = f"{plot.y.title}: {shown(y, plot.y.unit)}"
    return hover_text(series.name, first, second, note, f"{series.basis}: {series.source}")


def _heat(heat: Heat, size: Size) -> Canvas:
    from matplotlib.colors import LogNorm, Normalize

    canvas = Canvas(size, 5.0 if size is NARROW else 6.5)
    axes = canvas.axes
    with canvas.style():
        log_x, log_y = on_log(heat.x, heat.x_values), on_log(heat.y, heat.y_values)
        canvas.scale(Axis(heat.x.title, heat.x.unit, log_x), "x")
        canvas.scale(Axis(heat.y.title, heat.y.unit, log_y), "y")
        found = present(heat) or [1.0]
        log_z = on_log(heat.z, found)
        norm = (LogNorm if log_z else Normalize)(min(found), max(found))
        z = [[math.nan if value is None or math.isinf(value) else value for value in row] for row in heat.z_values]
        columns, rows = edges(heat.x_values, log_x), edges(heat.y_values, log_y)
        axes.grid(visible=False)
        axes.set_facecolor(MISSING)
        mesh = axes.pcolormesh(columns, rows, z, norm=norm, cmap="viridis", edgecolors="face")
        side = "top" if size is NARROW else "right"
        bar = canvas.figure.colorbar(mesh, ax=axes, location=side)
        canvas.label(bar.ax.xaxis if side == "top" else bar.ax.yaxis, Axis(heat.z.title, heat.z.unit, log_z))
        for axis, values in ((axes.xaxis, heat.x_values), (axes.yaxis, heat.y_values)):
            if len(values) <= MAX_TICKS:
                axis.set_ticks(list(values), [tick(value) for value in values])
                axis.set_ticks([], minor=True)
        for row, y in enumerate(heat.y_values):
            for column, x in enumerate(heat.x_values):
                value = heat.z_values[row][column]
                cell = (columns[column], columns[column + 1]), (rows[row], rows[row + 1])
                canvas.target(_cell_text(heat, x, y, value), *cell)
                if written(heat) and value is not None and math.isfinite(value):
                    colour, small = ON_LIGHT if norm(value) > 0.55 else ON_DARK, size.font - 2
                    axes.text(x, y, shown(value), ha="center", va="center", color=colour, fontsize=small)
    return canvas


def _cell_text(heat: Heat, x: float, y: float, value: float | None) -> str:
    found = (heat.missing or "no value") if value is None else f"{heat.z.title}: {shown(value, heat.z.unit)}"
    at = f"{heat.x.title}: {shown(x, heat.x.unit)}", f"{heat.y.title}: {shown(y, heat.y.unit)}"
    return hover_text(found, *at, f"{heat.basis}: {heat.source}")


def _waterfall(waterfall: Waterfall, size: Size) -> Canvas:
    steps = [(name, at) for name, at in waterfall.steps if drawable(at.value, waterfall.y)]
    canvas = Canvas(size, 1.1 + (0.75 if size is NARROW else 0.6) * len(steps))
    axes = canvas.axes
    with canvas.style():
        canvas.scale(waterfall.y, "x")
        before = min((at.value for _, at in steps), default=1) / 2 if waterfall.y.log else 0.0
        for row, (name, at) in enumerate(steps):
            after = at.value
            colour = MUTED if row == 0 or not before else COLOURS[ABOVE if after >= before else BELOW][0]
            canvas.bar(row, (before, after), colour, hover_text(name, at.text, f"{at.basis}: {at.source}"))
            if not after:
                axes.plot(0, row, marker="x", markersize=9, markeredgewidth=2, color=MUTED, clip_on=False)
            if row + 1 < len(steps):
                axes.plot([after, after], [row, row + 1], color=MUTED, linewidth=1)
            if at.low is not None and at.high is not None:
                axes.plot([at.low, at.high], [row, row], color=INK, linewidth=1.5, marker="|", markersize=10)
            before = after
        canvas.names([f"{name}\n{at.text}" for name, at in steps])
    return canvas


def _tornado(tornado: Tornado, size: Size) -> Canvas:
    base = tornado.base.value
    bars = widest_first(tornado) if drawable(base, tornado.x) else []
    canvas = Canvas(size, 1.2 + sum(0.3 + 0.2 * len(lines(name, size.label)) for name, _, _ in bars))
    with canvas.style():
        canvas.scale(tornado.x, "x")
        for row, (name, low, high) in enumerate(bars):
            ends = ((BELOW, low, "at its lowest"), (ABOVE, high, "at its highest"))
            for number, (colour, end, where) in enumerate(ends):
                text = hover_text(name, f"{where}: {end.text}", f"{end.basis}: {end.source}")
                label = where if row == 0 else ""
                canvas.bar(row, (base, end.value), COLOURS[colour][0], text, number, label)
        canvas.names([name for name, _, _ in bars])
        if bars:
            label = f"as it is: {tornado.base.text}"
            canvas.axes.axvline(base, color=MUTED, linestyle=":", linewidth=1.5, label=label)
    return canvas
