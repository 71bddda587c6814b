"""Progress bars and tables: with rich if it is installed, else as plain text (on a bare GPU machine)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

TableRow = dict[str, Any]
"""The figures of one row of a table, by column. Column names carry the units."""


class Bar(Protocol):
    def advance(self) -> None:
        """Count one more run as done."""
        ...


class PlainBar:
    """Prints one line at the start."""

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
    """Show a progress bar over `total` runs of `what`."""
    try:
        from rich.progress import Progress
    except ImportError:
        yield PlainBar(what, total)
        return
    with Progress(transient=True) as progress:
        yield RichBar(progress, what, total)


def print_table(title: str, rows: Sequence[TableRow]) -> None:
    """Print rows that all have the columns of the first."""
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
