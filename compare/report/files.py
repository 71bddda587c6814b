"""A report's files: the page, the JSON, and CSV and PNG of each chart. Each file is written whole or not at all."""

import csv
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from compare.report.document import (
    Axis,
    Block,
    Cell,
    Chart,
    Heat,
    Name,
    Number,
    NumberJson,
    Paragraph,
    Plot,
    ReportDocument,
    ReportSection,
    Series,
    SourceLink,
    Table,
    Tornado,
    Waterfall,
)
from compare.report.style import all_drawn, present, sentence, styles
from engine.errors import ConfigError
from engine.files import atomic_write

LIBRARY = "matplotlib"
KEY = r"[a-z0-9][a-z0-9_-]*"
NUMBER_COLUMNS = ("value", "unit", "low", "high", "label", "source")


def check_library() -> None:
    """Raise ConfigError if a report could not be drawn."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(f"a report needs {LIBRARY}: pip install 'sparkpool[compare]'")


def write(document: ReportDocument, folder: Path) -> None:
    """index.html, report.json, tables/KEY.csv, plots/KEY.csv and plots/KEY.png."""
    check_library()
    from compare.report.charts import draw
    from compare.report.page import page

    found = styles(document)
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    for block in document.blocks:
        if isinstance(block, Table):
            _write_csv(folder / "tables" / f"{block.key}.csv", _table_rows(block))
        elif not isinstance(block, Paragraph):
            _write_csv(folder / "plots" / f"{block.key}.csv", _plot_rows(block))
            with atomic_write(folder / "plots" / f"{block.key}.png") as file:
                draw(block, found).write_png(file, *_heading(block))
    _clear(document, folder)
    with atomic_write(folder / "report.json") as file:
        file.write_text(json.dumps(as_json(document), allow_nan=False, ensure_ascii=False, indent=1), encoding="utf-8")
    with atomic_write(folder / "index.html") as file:
        file.write_text(page(document), encoding="utf-8")


def _heading(chart: Chart) -> tuple[str, str]:
    """Return what a PNG says above the chart: its title, and a note."""
    title = sentence(f"{chart.subject}: {chart.title}" if chart.subject else chart.title)
    if isinstance(chart, Heat) and chart.missing and len(present(chart)) < len(chart.x_values) * len(chart.y_values):
        return title, f"grey: {chart.missing}"
    return title, "" if all_drawn(chart) else "some values are not drawn"


def _clear(document: ReportDocument, folder: Path) -> None:
    """Remove the files of tables and charts that the folder's previous report had and this one has not."""
    try:
        before = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        keys = {block["key"] for section in before["sections"] for block in section["blocks"] if "key" in block}
    except (OSError, ValueError, KeyError, TypeError):
        return
    keys -= {block.key for block in document.blocks if not isinstance(block, Paragraph)}
    for key in keys:
        if re.fullmatch(KEY, key):
            for name in (f"tables/{key}.csv", f"plots/{key}.csv", f"plots/{key}.png"):
                (folder / name).unlink(missing_ok=True)


class ReportJson(TypedDict):
    """The report as JSON. `numbers` has each number under its ID; text and tables name these IDs."""

    title: str
    about: dict[str, str]
    numbers: dict[str, NumberJson]
    sections: list[dict[str, object]]


def as_json(document: ReportDocument) -> ReportJson:
    numbers: dict[str, NumberJson] = {}
    sections = [_section(section, numbers) for section in document.sections]
    return {"title": document.title, "about": dict(document.about), "numbers": numbers, "sections": sections}


def _section(section: ReportSection, numbers: dict[str, NumberJson]) -> dict[str, object]:
    found = []
    for index, block in enumerate(section.blocks):
        key = str(index) if isinstance(block, Paragraph) else block.key
        found.append(_block(block, _NumberIds(f"{section.key}.{key}", numbers)))
    return {"key": section.key, "title": section.title, "blocks": found}


class _NumberIds:
    """Give the numbers of one block their IDs: the path to the block, and to them in it."""

    def __init__(self, prefix: str, numbers: dict[str, NumberJson]) -> None:
        self._prefix, self._numbers = prefix, numbers

    def number(self, number: Number, *path: object) -> dict[str, str]:
        key = ".".join(map(str, (self._prefix, *path)))
        self._numbers[key] = number.as_json()
        return {"number": key}

    def cell(self, cell: Cell, *path: object) -> object:
        match cell:
            case Number():
                return self.number(cell, *path)
            case Name():
                return {"name": cell.text}
            case SourceLink():
                return {"link": cell.text, "url": cell.url}
        return cell

    def cells(self, cells: Iterable[Cell], *path: object) -> list[object]:
        return [self.cell(cell, *path, index) for index, cell in enumerate(cells)]


def _block(block: Block, ids: _NumberIds) -> dict[str, object]:
    if isinstance(block, Paragraph):
        return {"kind": "paragraph", "style": block.kind, "parts": ids.cells(block.parts)}
    kind = type(block).__name__.lower()
    return {"kind": kind, "key": block.key, "title": block.title, "subject": block.subject, **_body(block, ids)}


def _body(block: Table | Chart, ids: _NumberIds) -> dict[str, object]:
    match block:
        case Table():
            return {
                "columns": ids.cells(block.columns, "head"),
                "rows": [ids.cells(row, index) for index, row in enumerate(block.rows)],
                "note": ids.cells(block.note, "note"),
            }
        case Plot():
            at = [ids.number(mark.at, "mark", index) for index, mark in enumerate(block.marks)]
            return {
                "x": _axis(block.x),
                "y": _axis(block.y),
                "series": [_series(series) for series in block.series],
                "marks": [{"name": m.name, "axis": m.axis, **n} for m, n in zip(block.marks, at, strict=True)],
            }
        case Heat():
            axes = {"x": _axis(block.x), "y": _axis(block.y), "z": _axis(block.z)}
            values = {"x_values": _plain(block.x_values), "y_values": _plain(block.y_values)}
            z = {"z_values": [_plain(row) for row in block.z_values], "missing": block.missing}
            return {**axes, **values, **z, "label": str(block.basis), "source": block.source}
        case Waterfall():
            steps = [{"name": name, **ids.number(at, "step", index)} for index, (name, at) in enumerate(block.steps)]
            return {"y": _axis(block.y), "steps": steps}
        case Tornado():
            bars = [
                {"name": name, "low": ids.number(low, index, "low"), "high": ids.number(high, index, "high")}
                for index, (name, low, high) in enumerate(block.bars)
            ]
            return {"x": _axis(block.x), "base": ids.number(block.base, "base"), "bars": bars}


def _axis(axis: Axis) -> dict[str, object]:
    return {"title": axis.title, "unit": axis.unit, "log": axis.log}


def _series(series: Series) -> dict[str, object]:
    return {
        "name": series.name,
        "style": series.style,
        "dashed": series.dashed,
        "x": _plain(series.x),
        "y": _plain(series.y),
        "notes": list(series.notes),
        "label": str(series.basis),
        "source": series.source,
    }


def _plain(values: Sequence[float | str | None]) -> list[float | str | None]:
    """Replace infinite values, which JSON cannot have, by None."""
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]


def _table_rows(table: Table) -> Iterator[tuple[object, ...]]:
    yield ("row", "column", *NUMBER_COLUMNS)
    columns = [_text_of(column) for column in table.columns]
    for row, cells in enumerate(table.rows, start=1):
        for column, cell in zip(columns, cells, strict=True):
            if isinstance(cell, Number):
                yield (row, column, *_number_row(cell))
            else:
                source = cell.url if isinstance(cell, SourceLink) else ""
                yield (row, column, _text_of(cell), "", "", "", "", source)


def _text_of(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else cell.text


def _number_row(number: Number) -> tuple[object, ...]:
    low, high = ("" if end is None else end for end in (number.low, number.high))
    return number.value, number.unit, low, high, str(number.basis), number.source


def _plot_rows(block: Chart) -> Iterator[tuple[object, ...]]:
    match block:
        case Plot():
            yield ("series", "x", "x unit", "y", "y unit", "label", "source", "note")
            for series in block.series:
                notes = series.notes or [""] * len(series.x)
                for x, y, note in zip(series.x, series.y, notes, strict=True):
                    yield (series.name, x, block.x.unit, y, block.y.unit, str(series.basis), series.source, note)
            for mark in block.marks:
                at = (mark.at.value, mark.at.unit)
                across, up = (at, ("", "")) if mark.axis == "x" else (("", ""), at)
                yield (mark.name, *across, *up, str(mark.at.basis), mark.at.source, "a line across the plot")
        case Heat():
            yield ("x", "x unit", "y", "y unit", "z", "z unit", "label", "source")
            for y, row in zip(block.y_values, block.z_values, strict=True):
                for x, z in zip(block.x_values, row, strict=True):
                    shown = block.missing if z is None else z
                    yield (x, block.x.unit, y, block.y.unit, shown, block.z.unit, str(block.basis), block.source)
        case Waterfall():
            yield ("step", *NUMBER_COLUMNS)
            yield from ((name, *_number_row(reached)) for name, reached in block.steps)
        case Tornado():
            yield ("name", "end", *NUMBER_COLUMNS)
            yield ("", "base", *_number_row(block.base))
            for name, low, high in block.bars:
                yield (name, "low", *_number_row(low))
                yield (name, "high", *_number_row(high))


def _write_csv(file: Path, rows: Iterable[tuple[object, ...]]) -> None:
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
