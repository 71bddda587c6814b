"""Curves as a picture, where matplotlib is installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """Points (x, y), joined in their order."""

    name: str
    points: Sequence[tuple[float, float]]


def draw(file: Path, title: str, axes: tuple[str, str], curves: Sequence[Curve], labels: Sequence[str]) -> bool:
    """Write a PNG; `labels` name the points of the first curve. False, and no file, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    plot = figure.subplots()
    for curve in curves:
        plot.plot(*zip(*curve.points, strict=True), marker="o", markersize=4, label=curve.name)
    for label, point in zip(labels, curves[0].points, strict=True):
        plot.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
    plot.set(title=title, xlabel=axes[0], ylabel=axes[1])
    plot.set_xlim(left=0)
    plot.set_ylim(bottom=0)
    plot.grid(alpha=0.3)
    plot.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return True
