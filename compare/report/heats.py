"""Heat maps as plotly.js takes them."""

import math
from collections.abc import Sequence

from compare.report.canvas import Figure, axis_of, hover, layout_of, plain, ticks_at
from compare.report.document import Axis, Heat
from compare.report.style import edges, log_ticks, on_log, present, shown, titled, written

MOST_TICKS = 12


def heat_figure(heat: Heat) -> Figure:
    """A logarithmic axis is a linear one of logarithms here: plotly.js would not write into the middle of a cell."""
    log_x, log_y = on_log(heat.x, heat.x_values), on_log(heat.y, heat.y_values)
    shape: Figure = {
        "type": "heatmap",
        "x": edges(_places(heat.x_values, log_x), log=False),
        "y": edges(_places(heat.y_values, log_y), log=False),
        "hoverinfo": "text",
        "hoverongaps": False,
    }
    layout = layout_of(_cells(heat.x, heat.x_values, log_x), _cells(heat.y, heat.y_values, log_y))
    layout["margin"]["t"] = 84
    data = [shape | _values(heat)]
    if any(_height(z, False) is None for row in heat.z_values for z in row):
        data.append(shape | _missing(heat))
    if written(heat):
        data.append(_texts(heat, log_x, log_y))
    return {"data": data, "layout": layout}


def _places(values: Sequence[float], log: bool) -> list[float]:
    return [math.log10(value) if log else value for value in values]


def _values(heat: Heat) -> Figure:
    log = on_log(heat.z, present(heat))
    z = [[_height(value, log) for value in row] for row in heat.z_values]
    title = {"text": plain(titled(heat.z)), "side": "top", "font": {"size": 13}}
    bar: Figure = {
        "orientation": "h",
        "y": 1.01,
        "yanchor": "bottom",
        "thickness": 12,
        "outlinewidth": 0,
        "exponentformat": "SI",
        "minexponent": 5,
        "separatethousands": True,
    }
    if log:
        ticks = [tick for tick in log_ticks(present(heat)) if min(present(heat)) <= tick <= max(present(heat))]
        bar |= ticks_at(ticks, _places(ticks, log))
    return {"z": z, "colorscale": "Viridis", "colorbar": {"title": title, **bar}, "hovertext": _heat_hovers(heat)}


def _texts(heat: Heat, log_x: bool, log_y: bool) -> Figure:
    """The values, in the middle of their cells: dark on the light end of the scale."""
    log = on_log(heat.z, present(heat))
    ends = [_height(end(present(heat)), log) or 0.0 for end in (min, max)] if present(heat) else [0.0, 0.0]
    places: Figure = {"x": [], "y": [], "text": []}
    colours = []
    for y, row in zip(_places(heat.y_values, log_y), heat.z_values, strict=True):
        for x, z in zip(_places(heat.x_values, log_x), row, strict=True):
            at = _height(z, log)
            if z is not None and at is not None:
                for key, value in (("x", x), ("y", y), ("text", shown(z))):
                    places[key].append(value)
                colours.append("#000000" if at > ends[0] + 0.55 * (ends[1] - ends[0]) else "#ffffff")
    font = {"size": 11, "color": colours}
    return {"type": "scatter", "mode": "text", "hoverinfo": "skip", "textfont": font, **places}


def _heat_hovers(heat: Heat) -> list[list[str]]:
    found = []
    for y, row in zip(heat.y_values, heat.z_values, strict=True):
        hovers = []
        for x, z in zip(heat.x_values, row, strict=True):
            value = (heat.missing or "no value") if z is None else f"{heat.z.title}: {shown(z, heat.z.unit)}"
            places = (f"{heat.x.title}: {shown(x, heat.x.unit)}", f"{heat.y.title}: {shown(y, heat.y.unit)}")
            hovers.append(hover(value, *places, str(heat.basis)))
        found.append(hovers)
    return found


def _missing(heat: Heat) -> Figure:
    """The cells that have no value, in a colour that the scale does not have."""
    z = [[1 if _height(value, False) is None else None for value in row] for row in heat.z_values]
    scale = [[0, "--missing"], [1, "--missing"]]
    return {"z": z, "colorscale": scale, "showscale": False, "zmin": 0, "zmax": 1, "hovertext": _heat_hovers(heat)}


def _height(value: float | None, log: bool) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return math.log10(value) if log else value


def _cells(axis: Axis, values: tuple[float, ...], log: bool) -> Figure:
    """An axis of a heat map: each column or row is named if there are not too many."""
    found = axis_of(Axis(axis.title, axis.unit)) | {"showgrid": False, "zeroline": False, "ticks": "outside"}
    ticks = values if len(values) <= MOST_TICKS else log_ticks(values) if log else ()
    return found | (ticks_at(ticks, _places(ticks, log)) if ticks else {})
