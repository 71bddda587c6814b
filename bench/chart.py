"""Draw curves into a PNG, if matplotlib is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(
    file: Path,
    title: str,
    axes: tuple[str, str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    labels: Sequence[str],
) -> None:
    """Write a PNG of curves by name, each a sequence of points (x, y). `labels` name the points of the first curve."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    plot = figure.subplots()
    for name, points in curves.items():
        plot.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    for label, point in zip(labels, next(iter(curves.values())), strict=True):
        plot.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
    plot.set(title=title, xlabel=axes[0], ylabel=axes[1])
    plot.set_xlim(left=0)
    plot.set_ylim(bottom=0)
    plot.grid(alpha=0.3)
    plot.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
