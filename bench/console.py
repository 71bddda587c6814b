"""Progress and tables: with rich where it is installed, plainly where it is not (a bare GPU machine)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Bar(Protocol):
    def advance(self) -> None:
        """One more is done."""
        ...


class PlainBar:
    """One line at the start and one at the end."""

    def __init__(self, what: str, total: int) -> None:
        print(f"{what}: {total} runs ...", flush=True)

    def advance(self) -> None:
        pass


class RichBar:
    def __init__(self, progress: Any, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total)

    def advance(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    """A progress bar over `total` runs of `what`."""
    try:
        from rich.progress import Progress
    except ImportError:
        yield PlainBar(what, total)
        return
    with Progress(transient=True) as progress:
        yield RichBar(progress, what, total)


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """`rows` all have the first one's columns."""
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}\n" + "\n".join(_aligned([columns, *cells])))
        return
    table = Table(title=title, title_justify="left")
    for column, first in zip(columns, rows[0].values(), strict=True):
        table.add_column(column, justify="left" if isinstance(first, str) else "right")
    for row in cells:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _aligned(lines: Iterable[Sequence[str]]) -> list[str]:
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
