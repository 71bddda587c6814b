"""The plots as PNGs, drawn by matplotlib without a browser. Needs matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare.report.document import Axis, Document, Heat, Plot, Series, Tornado, Waterfall
from compare.report.style import (
    ABOVE,
    BELOW,
    COLOURS,
    NOTHING,
    Look,
    all_drawn,
    drawable,
    edges,
    empty,
    lines,
    log_ticks,
    looks,
    named,
    on_log,
    points,
    present,
    sentence,
    shown,
    tick,
    titled,
    widest_first,
    written,
)
from engine.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

Options = dict[str, Any]

INCHES, DOTS = (12, 7.5), 100
MUTED, GRID, MISSING = "#5b6570", "#e4e7eb", "#a9a9a9"
STYLE: Any = {
    "font.size": 13,
    "axes.titlesize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "axes.edgecolor": MUTED,
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.1,
}
NAME_BOX: Any = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
MOST_TICKS = 12
LEGEND_WIDTH = 118
"""Characters."""
ROW = 16
"""Points between names above a plot."""


def draw(document: Document, folder: Path) -> None:
    """`folder`/KEY.png of each plot, heat map, waterfall and tornado."""
    import matplotlib
    from matplotlib.figure import Figure

    series_looks = looks(document)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for block in document.blocks:
            if not isinstance(block, Plot | Heat | Waterfall | Tornado):
                continue
            figure = Figure(figsize=INCHES, dpi=DOTS, layout="constrained")
            axes = figure.add_subplot()
            _draw(block, figure, axes, series_looks)
            title = f"{block.subject}: {block.title}" if block.subject else block.title
            written = "\n".join(lines(sentence(title), 88))
            figure.suptitle(written, x=0.012, ha="left", fontsize=15, fontweight="bold")
            if not all_drawn(block):
                pad = 14 + ROW * sum(mark.axis == "x" for mark in getattr(block, "marks", ()))
                axes.set_title("some values are not drawn", loc="right", fontsize=11, color=MUTED, pad=pad)
            with atomic_write(folder / f"{block.key}.png") as file:
                figure.savefig(file, format="png")


def _draw(block: Plot | Heat | Waterfall | Tornado, figure: Figure, axes: Axes, series_looks: dict[str, Look]) -> None:
    match block:
        case Plot():
            _plot(block, figure, axes, series_looks)
        case Heat():
            _heat(block, figure, axes)
        case Waterfall():
            _waterfall(block, axes)
        case Tornado():
            _tornado(block, figure, axes)
    if not isinstance(block, Heat):
        _round_ticks(axes)


def _plot(plot: Plot, figure: Figure, axes: Axes, series_looks: dict[str, Look]) -> None:
    _scale(axes, plot.x, "x")
    _scale(axes, plot.y, "y")
    names = list(dict.fromkeys(x for series in plot.series for x in series.x)) if named(plot) else []
    bars = [series for series in plot.series if series.style == "bars"]
    for series in plot.series:
        found = points(series, plot)
        xs = [float(names.index(x)) if names else float(x) for x, _ in found]
        ys = [math.nan if y is None else y for _, y in found]
        if series.style == "bars":
            _bars(axes, series, series_looks[series.name], xs, ys, (bars.index(series), len(bars)))
        else:
            _line(axes, series, series_looks[series.name], xs, ys)
    if names:
        axes.set_xticks(range(len(names)), ["\n".join(lines(str(name), 16)) for name in names])
        axes.grid(visible=False, axis="x")
    if not plot.y.log and all(y >= 0 for series in plot.series for y in series.y):
        axes.set_ylim(bottom=0)
    for axis in ("x", "y"):
        found_on = [mark for mark in plot.marks if mark.axis == axis]
        for row, mark in enumerate(found_on):
            if drawable(mark.at.value, plot.x if axis == "x" else plot.y):
                _mark(axes, mark.name, axis, mark.at.value, row)
    if empty(plot):
        axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", color=MUTED)
    else:
        longest = max(len(line) for series in plot.series for line in _label(series).split("\n"))
        columns = max(1, min(4, LEGEND_WIDTH // (longest + 7)))
        figure.set_figheight(INCHES[1] + 0.25 * max(0, math.ceil(len(plot.series) / columns) - 3))
        figure.legend(loc="outside lower left", ncols=columns, frameon=False)


def _line(axes: Axes, series: Series, look: Look, xs: list[float], ys: list[float]) -> None:
    style = "none" if series.style == "points" else "--" if series.dashed else "-"
    size = (5 if series.dashed else 8) + (3 if look.marker == "*" else 0)
    axes.plot(
        xs,
        ys,
        linestyle=style,
        linewidth=2,
        marker=look.marker,
        markersize=size,
        color=look.light,
        label=_label(series),
    )


def _bars(axes: Axes, series: Series, look: Look, xs: list[float], ys: list[float], place: tuple[int, int]) -> None:
    which, count = place
    width = 0.75 / count
    left = [x - 0.375 + width * (which + 0.5) for x in xs]
    hatch = "//" if series.dashed else None
    filled: Options = {"color": look.light, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
    axes.bar(left, ys, width * 0.95, label=_label(series), **filled)


def _label(series: Series) -> str:
    """Without an underscore as the first letter: matplotlib leaves such out of a legend."""
    name = f"\u200a{series.name}" if series.name.startswith("_") else series.name
    return "\n".join(lines(f"{name} ({series.basis})", 48))


def _mark(axes: Axes, name: str, axis: str, at: float, row: int) -> None:
    """Names on x are above the plot, each in a row of its own; on y they are on the line, left and right in turn."""
    line = axes.axvline if axis == "x" else axes.axhline
    line(at, color=MUTED, linestyle=":", linewidth=1.5)
    text = "\n".join(lines(name, 60))
    if axis == "x":
        place: Options = {"xy": (at, 1), "xycoords": ("data", "axes fraction"), "ha": "center"}
        place |= {"xytext": (0, 4 + ROW * row), "textcoords": "offset points"}
    else:
        place = {"xy": (row % 2, at), "xycoords": ("axes fraction", "data"), "ha": "right" if row % 2 else "left"}
    axes.annotate(text, **place, va="bottom", color=MUTED, fontsize=11, bbox=NAME_BOX)


def _heat(heat: Heat, figure: Figure, axes: Axes) -> None:
    from matplotlib.colors import LogNorm, Normalize

    log_x, log_y = on_log(heat.x, heat.x_values), on_log(heat.y, heat.y_values)
    _scale(axes, Axis(heat.x.title, heat.x.unit, log_x), "x")
    _scale(axes, Axis(heat.y.title, heat.y.unit, log_y), "y")
    found = present(heat) or [1.0]
    bounds = (min(found), max(found))
    norm = LogNorm(*bounds) if on_log(heat.z, found) else Normalize(*bounds)
    z = [[math.nan if value is None or math.isinf(value) else value for value in row] for row in heat.z_values]
    axes.grid(visible=False)
    axes.set_facecolor(MISSING)
    mesh = axes.pcolormesh(edges(heat.x_values, log_x), edges(heat.y_values, log_y), z, norm=norm, cmap="viridis")
    bar = figure.colorbar(mesh, ax=axes)
    _axis(bar.ax.yaxis, Axis(heat.z.title, heat.z.unit, isinstance(norm, LogNorm)))
    _ticks(axes, "x", heat.x_values)
    _ticks(axes, "y", heat.y_values)
    if written(heat):
        for y, row in zip(heat.y_values, heat.z_values, strict=True):
            for x, value in zip(heat.x_values, row, strict=True):
                if value is not None and math.isfinite(value):
                    colour = "black" if norm(value) > 0.55 else "white"
                    axes.text(x, y, shown(value), ha="center", va="center", color=colour, fontsize=11)
    if heat.missing and len(found) < len(heat.x_values) * len(heat.y_values):
        figure.text(0.01, 0.005, f"Grey: {heat.missing}", color=MUTED, fontsize=12)


def _ticks(axes: Axes, which: str, values: tuple[float, ...]) -> None:
    if len(values) <= MOST_TICKS:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_ticks(list(values), [tick(value) for value in values])
        axis.set_ticks([], minor=True)


def _waterfall(waterfall: Waterfall, axes: Axes) -> None:
    steps = [(name, at) for name, at in waterfall.steps if drawable(at.value, waterfall.y)]
    _scale(axes, waterfall.y, "x")
    reached = [at.value for _, at in steps]
    bases = [min(reached, default=1) / 2 if waterfall.y.log else 0.0, *reached[:-1]]
    for place, (before, after) in enumerate(zip(bases, reached, strict=False)):
        colour = MUTED if place == 0 or not before else COLOURS[ABOVE if after >= before else BELOW][0]
        if not after:
            axes.plot(0, place, marker="x", markersize=9, markeredgewidth=2, color=MUTED, clip_on=False)
        axes.barh(place, after - before, left=before, height=0.6, color=colour)
        if place + 1 < len(reached):
            axes.plot([after, after], [place, place + 1], color=MUTED, linewidth=1)
        at = steps[place][1]
        if at.low is not None and at.high is not None:
            axes.plot([at.low, at.high], [place, place], color="black", linewidth=1.5, marker="|", markersize=10)
    _names(axes, [f"{name}\n{at.text}" for name, at in steps])


def _tornado(tornado: Tornado, figure: Figure, axes: Axes) -> None:
    base = tornado.base.value
    bars = widest_first(tornado) if drawable(base, tornado.x) else []
    _scale(axes, tornado.x, "x")
    for place, (_, low, high) in enumerate(bars):
        for colour, result, end in ((BELOW, low, "at its lowest"), (ABOVE, high, "at its highest")):
            label = end if place == 0 else None
            axes.barh(place, result - base, left=base, height=0.6, color=COLOURS[colour][0], label=label)
    _names(axes, [name for name, _, _ in bars])
    if bars:
        axes.axvline(base, color=MUTED, linestyle=":", linewidth=1.5, label=f"as it is: {tornado.base.text}")
        figure.legend(loc="outside lower left", ncols=3, frameon=False)


def _names(axes: Axes, names: list[str]) -> None:
    """On the y axis, from top to bottom."""
    wrapped = ["\n".join(line for part in name.split("\n") for line in lines(part, 32)) for name in names]
    axes.set_yticks(range(len(names)), wrapped)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", pad=10)
    axes.grid(visible=False, axis="y")


def _round_ticks(axes: Axes) -> None:
    """Of logarithmic axes, once all is drawn."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(FixedLocator([at for at in log_ticks([low, high]) if low <= at <= high]))
            axis.set_minor_locator(NullLocator())


def _scale(axes: Axes, axis: Axis, which: str) -> None:
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    _axis(axes.xaxis if which == "x" else axes.yaxis, axis)


def _axis(drawn: XAxis | YAxis, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    drawn.set_label_text("\n".join(lines(titled(axis), 70)))
    drawn.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    drawn.set_minor_formatter(NullFormatter())
