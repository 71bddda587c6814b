"""What an evaluation found, as pictures, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.calibrate import Reliability
from train.drafter_evaluation import Result

Curve = tuple[str, Sequence[Reliability]]


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Acceptance by place, thresholds and reliability; the last two only for a drafter with confidences. Returns the
    files; none without matplotlib."""
    named = [(f"{result.domain}, {result.setting}", result.figures) for result in results]
    files = [folder / name for name in ("acceptance.png", "thresholds.png", "reliability.png")]
    if not drawable():
        return []
    with _picture(files[0], "Acceptance", "place in the block", "accepted, of those reached") as plot:
        for name, figures in named:
            plot.plot(range(1, len(figures.acceptance) + 1), figures.acceptance, marker="o", markersize=4, label=name)
        plot.set_ylim(0, 1)
    if not all(figures.sweep for _, figures in named):
        return files[:1]
    with _picture(files[1], "Verifying only what is likely enough", "drafts verified", "tokens of a round") as plot:
        for name, figures in named:
            plot.plot(*_columns([(s.verified, s.tokens) for s in figures.sweep]), marker="o", markersize=4, label=name)
    reliability_diagram(files[2], "Survival of drafts", [(name, figures.reliability) for name, figures in named])
    return files


def reliability_diagram(file: Path, title: str, curves: Sequence[Curve]) -> bool:
    """What came true against what was said; on the diagonal it is the same. False, and no file, without matplotlib."""
    if not drawable():
        return False
    with _picture(file, title, "foreseen", "came true") as plot:
        plot.plot((0, 1), (0, 1), color="grey", linewidth=1)
        for name, bins in curves:
            plot.plot(*_columns([(b.said, b.came) for b in bins if b.drafts]), marker="o", markersize=4, label=name)
        plot.set(xlim=(0, 1), ylim=(0, 1))
    return True


def drawable() -> bool:
    """Whether matplotlib is installed."""
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
