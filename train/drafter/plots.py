"""Plots of an evaluation, if matplotlib is installed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.drafter.confidence import ReliabilityBin
from train.drafter.evaluation import DrafterResult


def draw_evaluation(results: Sequence[DrafterResult], folder: Path) -> list[Path]:
    """Plot acceptance by position, thresholds and reliability; the last two only for a drafter with confidences.

    Returns the files; none without matplotlib.
    """
    named = [(f"{result.domain}, {result.setting}", result.figures) for result in results]
    files = [folder / name for name in ("acceptance.png", "thresholds.png", "reliability.png")]
    if not has_matplotlib():
        return []
    with _picture(files[0], "Acceptance", "position in the block", "accepted, if those before it were") as plot:
        for name, figures in named:
            plot.plot(range(1, len(figures.acceptance) + 1), figures.acceptance, marker="o", markersize=4, label=name)
        plot.set_ylim(0, 1)
    if not all(figures.sweep for _, figures in named):
        return files[:1]
    with _picture(files[1], "Verifying only likely drafts", "verified per round", "tokens per round") as plot:
        for name, figures in named:
            plot.plot(*_columns([(s.verified, s.tokens) for s in figures.sweep]), marker="o", markersize=4, label=name)
    reliability_diagram(files[2], "Survival of drafts", [(name, figures.reliability) for name, figures in named])
    return files


def reliability_diagram(file: Path, title: str, curves: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> bool:
    """Plot observed against predicted survival. Returns False, and writes no file, without matplotlib."""
    if not has_matplotlib():
        return False
    with _picture(file, title, "predicted", "observed") as plot:
        plot.plot((0, 1), (0, 1), color="grey", linewidth=1)
        for name, bins in curves:
            plot.plot(
                *_columns([(b.predicted, b.observed) for b in bins if b.drafts]), marker="o", markersize=4, label=name
            )
        plot.set(xlim=(0, 1), ylim=(0, 1))
    return True


def has_matplotlib() -> bool:
    """Tell whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _picture(file: Path, title: str, across: str, up: str) -> Iterator[Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    plot = figure.subplots()
    yield plot
    plot.set(title=title, xlabel=across, ylabel=up)
    plot.grid(alpha=0.3)
    plot.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
