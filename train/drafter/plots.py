"""Plots of an evaluation, if matplotlib is installed."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from train.drafter.confidence import ReliabilityBin
from train.drafter.evaluation import DrafterResult

Points = Iterable[tuple[float, float]]
UNIT = (0.0, 1.0)


def draw_evaluation(results: Sequence[DrafterResult], folder: Path) -> bool:
    """Plot acceptance by position, thresholds and reliability; the last two only for a drafter with confidences.

    Returns False, and writes no file, without matplotlib.
    """
    named = [(f"{result.domain}, {result.setting}", result.figures) for result in results]
    acceptance = [(name, enumerate(figures.acceptance, start=1)) for name, figures in named]
    labels = ("position in the block", "accepted, if those before it were")
    drawn = _plot(folder / "acceptance.png", "Acceptance", labels, acceptance, ylim=UNIT)
    if all(figures.sweep for _, figures in named):
        sweeps = [(name, [(s.verified, s.tokens) for s in figures.sweep]) for name, figures in named]
        labels = ("drafts verified per round", "tokens per round")
        _plot(folder / "thresholds.png", "Verifying only likely drafts", labels, sweeps)
        reliability_diagram(folder / "reliability.png", [(name, figures.reliability) for name, figures in named])
    return drawn


def reliability_diagram(file: Path, curves: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> bool:
    """Plot observed against predicted survival. Returns False, and writes no file, without matplotlib."""
    points = [(name, [(b.predicted, b.observed) for b in bins if b.drafts]) for name, bins in curves]
    labels = ("predicted", "observed")
    return _plot(file, "Survival of drafts", labels, [("calibrated", [(0, 0), (1, 1)]), *points], xlim=UNIT, ylim=UNIT)


def _plot(
    file: Path,
    title: str,
    labels: tuple[str, str],
    curves: Sequence[tuple[str, Points]],
    **limits: tuple[float, float],
) -> bool:
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    plot = figure.subplots()
    for name, points in curves:
        plot.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    plot.set(title=title, xlabel=labels[0], ylabel=labels[1], **limits)
    plot.grid(alpha=0.3)
    plot.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return True
