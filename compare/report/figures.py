"""Plots as plotly.js takes them: plain data."""

import math
from collections.abc import Sequence
from itertools import pairwise

from compare.report.canvas import (
    LABEL_WIDTH,
    ROW,
    Figure,
    axis_of,
    hover,
    labelled,
    layout_of,
    line_at,
    named_axis,
    names_at,
    plain,
    wrapped,
)
from compare.report.document import Axis, Heat, Number, Plot, Series, Tornado, Waterfall
from compare.report.heats import heat_figure
from compare.report.style import ABOVE, BELOW, Look, drawable, lines, named, points, shown, widest_first

TITLE_WIDTH = 24
"""Characters of a line of an axis's title, beside names."""


def figure(block: Plot | Heat | Waterfall | Tornado, looks: dict[str, Look]) -> Figure:
    match block:
        case Plot():
            return _plot(block, looks)
        case Heat():
            return heat_figure(block)
        case Waterfall():
            return _waterfall(block)
        case Tornado():
            return _tornado(block)


def height(block: Plot | Heat | Waterfall | Tornado) -> int:
    """In pixels."""
    match block:
        case Waterfall():
            return 110 + 62 * len(block.steps)
        case Tornado():
            return 120 + len(block.bars) * (22 + 17 * max((_rows(name) for name, _, _ in block.bars), default=1))
        case Plot():
            return (340 if len(block.series) == 1 else 440) + ROW * sum(mark.axis == "x" for mark in block.marks)
        case Heat():
            return 520


def _rows(name: str) -> int:
    return len(lines(name, LABEL_WIDTH))


def series_colour(look: Look) -> str:
    return f"--series-{look.colour}"


def _plot(plot: Plot, looks: dict[str, Look]) -> Figure:
    data = [_trace(series, plot, looks[series.name]) for series in plot.series]
    marked = {axis: [mark.at.value for mark in plot.marks if mark.axis == axis] for axis in ("x", "y")}
    xs = [x for series in plot.series for x in series.x if not isinstance(x, str)]
    ys = [y for series in plot.series for y in series.y]
    layout = layout_of(axis_of(plot.x, [*xs, *marked["x"]]), axis_of(plot.y, [*ys, *marked["y"]]))
    if named(plot):
        layout["xaxis"] |= {"type": "category", "showgrid": False}
    if not plot.y.log and all(y >= 0 for series in plot.series for y in series.y):
        layout["yaxis"]["rangemode"] = "tozero"
    across = [(mark, plot.x if mark.axis == "x" else plot.y) for mark in plot.marks]
    drawn = [(mark, axis) for mark, axis in across if drawable(mark.at.value, axis)]
    layout["shapes"] = [line_at(mark.axis, mark.at.value) for mark, _ in drawn]
    layout["annotations"] = names_at(
        [
            (mark.name, mark.axis, *_place(mark.at.value, [*xs, *marked["x"]] if mark.axis == "x" else ys, axis.log))
            for mark, axis in drawn
        ]
    )
    layout["margin"]["t"] += ROW * sum(mark.axis == "x" for mark, _ in drawn)
    layout["bargap"] = 0.25
    return {"data": data, "layout": layout}


def _place(at: float, values: Sequence[float], log: bool) -> tuple[float, float]:
    """Where plotly.js has a value on its axis, and how far along all of them it is."""
    places = [math.log10(x) if log else x for x in (at, *values) if math.isfinite(x) and (x > 0 or not log)]
    low, high = min(places), max(places)
    return places[0], (places[0] - low) / (high - low) if high > low else 0.5


def _trace(series: Series, plot: Plot, look: Look) -> Figure:
    colour = series_colour(look)
    drawn = points(series, plot)
    trace: Figure = {
        "name": plain(series.name),
        "x": [wrapped(x, 14) if isinstance(x, str) else x for x, _ in drawn],
        "y": [y for _, y in drawn],
        "hoverinfo": "text",
        "hovertext": _hovers(series, plot),
    }
    if series.style == "bars":
        lined = {"shape": "/", "size": 7, "bgcolor": colour, "fgcolor": "--paper", "fgopacity": 1}
        pattern = {"pattern": lined} if series.dashed else {}
        return trace | {"type": "bar", "marker": {"color": colour, **pattern}}
    edge = {"color": "--paper", "width": 0.8}
    marker = {"color": colour, "symbol": look.symbol, "size": 7 if series.dashed else 9, "line": edge}
    line = {"color": colour, "width": 2, "dash": "dash" if series.dashed else "solid"}
    mode = "markers" if series.style == "points" else "lines+markers"
    return trace | {"type": "scatter", "mode": mode, "marker": marker, "line": line, "connectgaps": False}


def _hovers(series: Series, plot: Plot) -> list[str]:
    """What points say: only of those that `points` has."""
    notes = series.notes or ("",) * len(series.x)
    found = []
    for x, y, note in zip(series.x, series.y, notes, strict=True):
        if drawable(x, plot.x):
            first = x if isinstance(x, str) else f"{plot.x.title}: {shown(x, plot.x.unit)}"
            said = (first, f"{plot.y.title}: {shown(y, plot.y.unit)}", note, str(series.basis))
            found.append(hover(series.name, *said))
    return found


def _waterfall(waterfall: Waterfall) -> Figure:
    steps = [(name, at) for name, at in waterfall.steps if drawable(at.value, waterfall.y)]
    labels = [labelled(name, at.text) for name, at in steps]
    reached = [at.value for _, at in steps]
    start = min(reached, default=1) / 2 if waterfall.y.log else 0.0
    bases = [start, *reached[:-1]]
    colours = ["--muted", *_directions(reached)]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(labels))),
        "base": bases,
        "x": [after - before for before, after in zip(bases, reached, strict=False)],
        "marker": {"color": colours[: len(labels)]},
        "hoverinfo": "text",
        "hovertext": [hover(name, at.text, str(at.basis)) for name, at in steps],
    }
    data = [bars, _ranges([at for _, at in steps], waterfall.y), _nothing(reached)]
    layout = layout_of(axis_of(waterfall.y, reached, TITLE_WIDTH), named_axis(labels))
    line = {"type": "line", "line": {"color": "--muted", "width": 1}, "layer": "below"}
    joined = enumerate(reached[:-1])
    layout["shapes"] = [line | {"x0": at, "x1": at, "y0": place, "y1": place + 1} for place, at in joined]
    return {"data": data, "layout": layout}


def _directions(reached: list[float]) -> list[str]:
    """Colours of the steps after the first. From zero nothing is added: that is a start."""
    pairs = pairwise(reached)
    return [f"--series-{ABOVE if after >= before else BELOW}" if before else "--muted" for before, after in pairs]


def _nothing(reached: list[float]) -> Figure:
    """Steps that reach zero have no bar, and a cross."""
    places = [place for place, at in enumerate(reached) if at == 0]
    marker = {"color": "--muted", "symbol": "x-thin", "size": 9, "line": {"color": "--muted", "width": 2}}
    at = {"x": [0] * len(places), "y": places, "cliponaxis": False}
    return {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "marker": marker, **at}


def _ranges(numbers: list[Number], axis: Axis) -> Figure:
    """Of those that depend on what nobody knows: from the least to the most."""
    both = enumerate(numbers)
    found = [(place, at) for place, at in both if drawable(at.low, axis) and drawable(at.high, axis)]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [(at.high or 0) - at.value for _, at in found],
        "arrayminus": [at.value - (at.low or 0) for _, at in found],
        "color": "--ink",
        "thickness": 1.5,
        "width": 5,
    }
    place = {"x": [at.value for _, at in found], "y": [place for place, _ in found]}
    marker = {"color": "--ink", "size": 4}
    return {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "marker": marker, "error_x": error, **place}


def _tornado(tornado: Tornado) -> Figure:
    base = tornado.base.value
    bars = widest_first(tornado) if drawable(base, tornado.x) else []
    if not bars:
        return {"data": [], "layout": layout_of(axis_of(tornado.x), named_axis([]))}
    labels = [labelled(name) for name, _, _ in bars]
    data = []
    for colour, place, end in ((BELOW, 1, "at its lowest"), (ABOVE, 2, "at its highest")):
        results = [float(bar[place]) for bar in bars]
        names = [bar[0] for bar in bars]
        hovers = [hover(name, f"{end}: {shown(x, tornado.x.unit)}") for name, x in zip(names, results, strict=True)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": list(range(len(labels))),
                "base": base,
                "x": [result - base for result in results],
                "marker": {"color": f"--series-{colour}"},
                "hoverinfo": "text",
                "hovertext": hovers,
            }
        )
    ends = [base, *(end for _, low, high in bars for end in (low, high))]
    layout = layout_of(axis_of(tornado.x, ends, TITLE_WIDTH), named_axis(labels)) | {"barmode": "overlay"}
    layout["shapes"] = [line_at("x", base)]
    return {"data": data, "layout": layout}
