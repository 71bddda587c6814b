"""A figure that a chart is drawn on: saved as a PNG file, and as an SVG element for the page. Needs matplotlib.

The page has two drawings of each chart, for wide and for narrow windows; a title and a legend are not part of them, but
of the page. Each value in them has a text for readers who point at it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare.report.document import Axis
from compare.report.style import COLOURS, lines, log_ticks, tick, titled
from compare.report.svg import HoverArea, for_page

if TYPE_CHECKING:
    from matplotlib.axis import Axis as DrawnAxis

INK, PAPER, MUTED, GRID, MISSING = "#1c2127", "#ffffff", "#5b6570", "#e4e7eb", "#a9a9a9"
_NAMES = {INK: "ink", PAPER: "paper", MUTED: "muted", GRID: "grid", MISSING: "missing"}
_NAMES |= {light: f"series-{number}" for number, (light, _) in enumerate(COLOURS)}
CSS_VARIABLES = {colour: f"var(--{name})" for colour, name in _NAMES.items()}
RC_PARAMS: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "axes.edgecolor": MUTED,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "svg.fonttype": "none",
}
LEGEND_WIDTH, TITLE_WIDTH = 118, 88
"""Characters of a line of a PNG's legend and title."""
PNG_HEIGHT, PNG_DOTS = 7.5, 100
"""Inches, and pixels per inch."""


@dataclass(frozen=True)
class Size:
    """The width of a drawing in inches, its font's size in points, and how many characters a line has."""

    name: str
    inches: float
    font: float
    title: int
    label: int
    category: int


WIDE = Size("wide", 12, 13, title=70, label=32, category=16)
NARROW = Size("narrow", 5, 11, title=38, label=16, category=9)


class Canvas:
    """One pair of axes, with the targets that show a text."""

    def __init__(self, size: Size, height: float, marks: int = 0) -> None:
        """`height` in inches; `marks`: rows of names above the axes, for which there is more room."""
        from matplotlib.figure import Figure

        self.size, self.row = size, 1.25 * size.font
        self._above = self.row * marks
        self._targets: list[HoverArea] = []
        with self.style():
            inches = (size.inches, height + self._above / 72)
            self.figure = Figure(figsize=inches, dpi=PNG_DOTS, layout="constrained")
            self.axes = self.figure.add_subplot()

    def style(self, salt: str = "") -> AbstractContextManager[None]:
        """Return a context in which all is drawn and saved in the report's style; `salt`: what makes an SVG's IDs
        differ from those of other drawings in a page."""
        import matplotlib

        return matplotlib.rc_context(RC_PARAMS | {"font.size": self.size.font, "svg.hashsalt": salt})

    def svg(self, label: str) -> str:
        """Return an SVG element for the page; `label` describes it to readers who cannot see it."""
        out = io.StringIO()
        with self.style(f"{self.size.name} {label}"):
            self._round_ticks()
            self.figure.savefig(out, format="svg", facecolor="none", metadata={"Date": None})
        return for_page(out.getvalue(), self.size.name, label, CSS_VARIABLES, map(self._placed, self._targets))

    def write_png(self, file: Path, title: str, note: str = "") -> None:
        """Write the drawing as it stands alone, with its title and legend."""
        with self.style():
            self._round_ticks()
            self.figure.set_figheight(PNG_HEIGHT)
            text = "\n".join(lines(title, TITLE_WIDTH))
            self.figure.suptitle(text, x=0.012, ha="left", fontsize=15, fontweight="bold")
            self.axes.set_title(note, loc="right", fontsize=11, color=MUTED, pad=14 + self._above)
            handles, labels = self.axes.get_legend_handles_labels()
            if labels:
                longest = max(len(line) for label in labels for line in label.split("\n"))
                columns = max(1, min(4, LEGEND_WIDTH // (longest + 7)))
                self.figure.set_figheight(PNG_HEIGHT + 0.25 * max(0, math.ceil(len(labels) / columns) - 3))
                self.figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False)
            self.figure.savefig(file, format="png")

    def target(self, text: str, x: tuple[float, float], y: tuple[float, float], series: int = 0) -> None:
        """Show a text over an area, in the axes' units; over a point, if both edges are the same."""
        self._targets.append(HoverArea(series, text, x, y))

    def _placed(self, target: HoverArea) -> HoverArea:
        """Return the target in units of the SVG; the figure has its layout by now."""
        corners = self.axes.transData.transform(list(zip(target.x, target.y, strict=True))) * 72 / PNG_DOTS
        (left, right), (low, high) = (sorted(map(float, ends)) for ends in corners.T)
        height = 72 * self.figure.get_figheight()
        return HoverArea(target.series, target.text, (left, right), (height - high, height - low))

    def bar(
        self, row: int, ends: tuple[float, float], colour: str, text: str, series: int = 0, label: str = ""
    ) -> None:
        """Draw a horizontal bar in a row of names."""
        start, end = ends
        (bar,) = self.axes.barh(row, end - start, left=start, height=0.6, color=colour, label=label or None)
        bar.set_gid(f"series-{series}")
        self.target(text, ends, (row - 0.3, row + 0.3), series)

    def mark(self, name: str, axis: str, at: float, row: int) -> None:
        """Draw a line and its name: on x above the axes, each in a row of its own; on y at the line, left and right in
        turn."""
        (self.axes.axvline if axis == "x" else self.axes.axhline)(at, color=MUTED, linestyle=":", linewidth=1.5)
        point, units, points_up = (float(row % 2), at), ("axes fraction", "data"), 0.0
        side = "right" if row % 2 else "left"
        if axis == "x":
            point, units, points_up = (at, 1.0), ("data", "axes fraction"), 4 + self.row * row
            drawn = self.axes.transData.transform((at, self.axes.get_ylim()[0]))
            along = self.axes.transAxes.inverted().transform(drawn)[0]
            side = "left" if along < 1 / 3 else "right" if along > 2 / 3 else "center"
        box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 2}
        text, small = "\n".join(lines(name, 60)), self.size.font - 2
        self.axes.annotate(
            text,
            point,
            (0.0, points_up),
            xycoords=units,
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=MUTED,
            fontsize=small,
            bbox=box,
        )

    def names(self, names: Sequence[str]) -> None:
        """Write names at the y axis, from top to bottom."""
        wrapped = [[line for part in name.split("\n") for line in lines(part, self.size.label)] for name in names]
        self.axes.set_yticks(range(len(names)), ["\n".join(found) for found in wrapped])
        self.axes.set_ylim(len(names) - 0.4, -0.6)
        self.axes.tick_params(axis="y", pad=10)
        self.axes.grid(visible=False, axis="y")

    def scale(self, axis: Axis, which: str) -> None:
        """Give one of the axes its scale, title and format of numbers."""
        if axis.log:
            (self.axes.set_xscale if which == "x" else self.axes.set_yscale)("log")
        self.label(self.axes.xaxis if which == "x" else self.axes.yaxis, axis)

    def label(self, drawn: DrawnAxis, axis: Axis) -> None:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        drawn.set_label_text("\n".join(lines(titled(axis), self.size.title)))
        drawn.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        drawn.set_minor_formatter(NullFormatter())

    def _round_ticks(self) -> None:
        """Give logarithmic axes round ticks, once all is drawn; those of given ticks keep them."""
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

        for axis in (self.axes.xaxis, self.axes.yaxis):
            if axis.get_scale() == "log" and isinstance(axis.get_major_locator(), LogLocator):
                low, high = axis.get_view_interval()
                axis.set_major_locator(FixedLocator([at for at in log_ticks([low, high]) if low <= at <= high]))
                axis.set_minor_locator(NullLocator())
