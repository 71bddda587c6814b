"""Fills the Markdown templates of both model cards with measured figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def render(template: Path, values: dict[str, object]) -> str:
    """Fill in a template of str.format. Its front matter is what model hubs read."""
    return template.read_text().format(**values)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
