"""The look of charts: colours, markers, ticks, and which values can be drawn at all."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from compare.report.document import Axis, Basis, Chart, Heat, Number, Plot, ReportDocument, Tornado, Waterfall

COLOURS = (
    ("#0072b2", "#4aa3e0"),
    ("#d55e00", "#ff8142"),
    ("#009e73", "#1fc493"),
    ("#c25a93", "#e79bc4"),
    ("#9a6e00", "#e8b02e"),
    ("#3d3d3d", "#e6e6e6"),
    ("#6a3fc0", "#ab8fff"),
    ("#7f1d4e", "#d4587f"),
    ("#008aa3", "#63dfee"),
    ("#7a4a2b", "#c49a78"),
    ("#5a8400", "#b4d94c"),
    ("#c81e2c", "#ff5c66"),
)
"""(on light, on dark). The first are after Okabe and Ito, so that colour-blind people can tell them apart; darker or
lighter where the background asks for it."""
MARKERS = ("o●", "s■", "D◆", "^▲", "v▼", "X✖", "*★")
"""Each as matplotlib calls it and as text. Not as many as colours, so that pairs of both repeat late."""
MAX_COLUMNS, MAX_ROWS = 8, 16
"""The largest heat map whose values are written into its cells."""
NOTHING = "There is no value that could be drawn here."
BELOW, ABOVE = 1, 0
"""Which colours a tornado's low and high ends have, and a waterfall's steps down and up."""


@dataclass(frozen=True)
class Style:
    """The look of a series. `colour`: its index in COLOURS; `glyph`: its marker as text."""

    colour: int
    marker: str
    glyph: str

    @property
    def light(self) -> str:
        return COLOURS[self.colour][0]


def style(index: int) -> Style:
    return Style(index % len(COLOURS), *MARKERS[index % len(MARKERS)])


def styles(document: ReportDocument) -> dict[str, Style]:
    """Return the style of each series by its name: the same in all plots."""
    plots = [block for block in document.blocks if isinstance(block, Plot)]
    names = dict.fromkeys(series.name for plot in plots for series in plot.series)
    return {name: style(index) for index, name in enumerate(names)}


def titled(axis: Axis) -> str:
    return f"{axis.title} ({axis.unit})" if axis.unit else axis.title


def axis_titles(chart: Chart) -> str:
    return ", ".join(titled(getattr(chart, name)) for name in ("x", "y", "z") if hasattr(chart, name))


def hover_text(name: str, *details: str) -> str:
    """Return what a reader sees who points at a value, in lines."""
    return "\n".join((name, *filter(None, details)))


def shown(value: float, unit: str = "") -> str:
    """Return the value as a number of the text would be shown."""
    return "no value" if math.isnan(value) else Number(value, unit, Basis.UNKNOWN, "a plot").text


def named(plot: Plot) -> bool:
    """Tell whether the values of x are names."""
    return any(isinstance(x, str) for series in plot.series for x in series.x)


def drawable(value: float | str | None, axis: Axis) -> bool:
    """Tell whether a value has a position on an axis: it is finite, and above zero if the axis is logarithmic."""
    if isinstance(value, str):
        return True
    return value is not None and math.isfinite(value) and (not axis.log or value > 0)


def all_drawn(block: Chart) -> bool:
    """Tell whether each value has a position in the chart. Cells without a value have one."""
    match block:
        case Plot():
            values = [(x, y) for series in block.series for x, y in zip(series.x, series.y, strict=True)]
            marks = [(mark.at.value, block.x if mark.axis == "x" else block.y) for mark in block.marks]
            placed = all(drawable(x, block.x) and drawable(y, block.y) for x, y in values)
            return placed and all(drawable(at, axis) for at, axis in marks)
        case Waterfall():
            return all(drawable(at.value, block.y) for _, at in block.steps)
        case Tornado():
            ends = [end for _, low, high in block.bars for end in (low, high)]
            return all(drawable(at.value, block.x) for at in (block.base, *ends))
    return True


def edges(values: Sequence[float], log: bool) -> list[float]:
    """Return the edges of a heat map's cells: halfway between neighbours, on the axis's scale."""
    positions = [math.log10(value) for value in values] if log else list(values)
    if len(positions) == 1:
        positions = [positions[0] - 0.5, positions[0] + 0.5]
    else:
        inner = [(a + b) / 2 for a, b in pairwise(positions)]
        positions = [2 * positions[0] - inner[0], *inner, 2 * positions[-1] - inner[-1]]
    return [10**number for number in positions] if log else positions


def tick(value: float) -> str:
    """Return the label of a tick, with no more than four digits."""
    if abs(value) >= 1e6:
        return f"{float(f'{value / 1e6:.4g}'):,.10g}M"
    return f"{float(f'{value:.4g}'):,.10g}"


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return round values for a logarithmic axis over these: the more decades, the fewer in each. They extend beyond
    the values."""
    found = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = min(found), max(found)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in (("1",), ("1", "2", "5"), ("1", "1.5", "2", "3", "4", "5", "7")):
        ticks = [float(f"{step}e{power}") for power in range(first - 2, last + 2) for step in steps]
        inside = sum(low <= at <= high for at in ticks)
        if inside > 2 or (inside == 2 and high > 30 * low):
            return ticks
    return ticks if high < 1.001 * low else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Return even ticks, for an axis so short that a logarithmic one hardly differs."""
    size = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(size * much for much in (1, 2, 5) if size * much <= (high - low) / 3)
    first, last = math.floor((1.5 * low - 0.5 * high) / step), math.ceil((1.5 * high - 0.5 * low) / step)
    return [number * step for number in range(max(1, first), last + 1)]


def on_log(axis: Axis, values: Sequence[float]) -> bool:
    """Tell whether a heat map's axis shall be logarithmic, and can be."""
    return axis.log and bool(values) and all(value > 0 for value in values)


def written(heat: Heat) -> bool:
    """Tell whether there is room for the values in the cells."""
    return len(heat.x_values) <= MAX_COLUMNS and len(heat.y_values) <= MAX_ROWS


def present(heat: Heat) -> list[float]:
    return [z for row in heat.z_values for z in row if z is not None and math.isfinite(z)]


def widest_first(tornado: Tornado) -> list[tuple[str, Number, Number]]:
    """Return (name, low, high) of what can be drawn."""
    found = [bar for bar in tornado.bars if all(drawable(end.value, tornado.x) for end in bar[1:])]
    return sorted(found, key=lambda bar: -abs(bar[2].value - bar[1].value))


def empty(block: Chart) -> bool:
    """Tell whether nothing at all is drawn."""
    return isinstance(block, Plot) and not block.series


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
