"""What plotly.js takes for axes, text and lines. A colour is the name of a CSS variable, which the page looks up."""

import html
from collections.abc import Sequence
from typing import Any

from compare.report.document import Axis
from compare.report.style import lines, log_ticks, tick, titled

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
LABEL_WIDTH, HOVER_WIDTH = 20, 44
"""Characters."""
ROW = 18
"""Pixels between names above a plot."""

Figure = dict[str, Any]

_WRITTEN: Figure = {
    "showarrow": False,
    "font": {"size": 12, "color": "--muted"},
    "bgcolor": "--paper",
    "opacity": 0.85,
    "borderpad": 2,
}


def layout_of(x: Figure, y: Figure) -> Figure:
    nothing = "rgba(0,0,0,0)"
    return {
        "paper_bgcolor": nothing,
        "plot_bgcolor": nothing,
        "font": {"family": FONT, "size": 13, "color": "--ink"},
        "margin": {"l": 8, "r": 16, "t": 30, "b": 8},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "--raised", "bordercolor": "--line", "font": {"color": "--ink"}, "align": "left"},
        "modebar": {"bgcolor": nothing, "color": "--muted", "activecolor": "--ink"},
        "xaxis": x,
        "yaxis": y,
    }


def axis_of(axis: Axis, values: Sequence[float] = (), width: int = 48) -> Figure:
    """`values`: what is on it; `width`: characters of a line of its title."""
    title = "<br>".join(plain(line) for line in lines(titled(axis), width))
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "type": "log" if axis.log else "linear",
        "gridcolor": "--grid",
        "linecolor": "--line",
        "zerolinecolor": "--line",
        "showline": True,
        "automargin": True,
        "exponentformat": "SI",
        "minexponent": 5,
        "separatethousands": True,
        **(ticks_at(log_ticks(values)) if axis.log else {}),
    }


def ticks_at(values: Sequence[float], places: Sequence[float] | None = None) -> Figure:
    """`places`: where they are on the axis, if it is not where they say."""
    return {"tickmode": "array", "tickvals": list(places or values), "ticktext": [tick(value) for value in values]}


def named_axis(names: list[str]) -> Figure:
    """An axis of names, from top to bottom. They are at their numbers: two may be the same."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names, "ticklabelstandoff": 6}
    placed = {"range": [len(names) - 0.4, -0.6], "automargin": True, "showgrid": False, "zeroline": False}
    return {"type": "linear", "linecolor": "--line", **placed, **ticks}


def labelled(name: str, text: str = "") -> str:
    return wrapped(name, LABEL_WIDTH) + (f"<br><b>{wrapped(text, LABEL_WIDTH)}</b>" if text else "")


def wrapped(text: str, width: int) -> str:
    return "<br>".join(plain(line) for line in lines(text, width))


def hover(name: str, *said: str) -> str:
    return "<br>".join([f"<b>{wrapped(name, HOVER_WIDTH)}</b>", *(wrapped(text, HOVER_WIDTH) for text in said if text)])


def plain(text: str) -> str:
    """plotly reads some tags in text."""
    return html.escape(text, quote=False)


def line_at(axis: str, at: float) -> Figure:
    """A line across the plot at a value of one axis."""
    other = "y" if axis == "x" else "x"
    across = {f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain"}
    dotted = {"color": "--muted", "width": 1.5, "dash": "dot"}
    return {"type": "line", f"{axis}0": at, f"{axis}1": at, **across, "line": dotted}


def names_at(marks: Sequence[tuple[str, str, float, float]]) -> list[Figure]:
    """What is written on such lines, of (name, axis, at, how far along the axis): of x above the plot, each in a row of
    its own; of y on the line, left and right in turn."""
    found = []
    for which in ("x", "y"):
        for row, (name, axis, at, along) in enumerate(mark for mark in marks if mark[1] == which):
            if axis == "x":
                anchor = "left" if along < 1 / 3 else "right" if along > 2 / 3 else "center"
                place: Figure = {"y": 1, "yref": "y domain", "yshift": ROW * row, "xanchor": anchor}
            else:
                place = {"x": row % 2, "xref": "x domain", "xanchor": "right" if row % 2 else "left"}
            found.append({"text": plain(name), axis: at, "yanchor": "bottom", **_WRITTEN, **place})
    return found
