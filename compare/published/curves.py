"""Curves measured with MTP-1, from files and from the DSpark paper's figures, and what DSpark would make of them."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from compare.published.anchors import PUBLISHED
from compare.study.dspark import CurvePoint, Drafting, predicted
from engine.errors import ConfigError
from hardware.model import Model, known_models

FIGURES = PUBLISHED / "dspark_figures.csv"
BASELINE, DSPARK = "MTP-1", "DSpark-5"
THROUGHPUT, BUDGET, INTERACTIVITY = "8tput", "8budget", "7"
"""Names of the figures there: throughput and verified tokens over concurrency, throughput over each user's rate."""
FIGURE_COLUMNS = ("figure", "model", "drafter", "x", "y")
COLUMNS = ("concurrency_per_gpu", "tok_s_per_gpu", "tok_s_per_user")
ORIGIN = 0.5  # an axis' zero, as it is read off a figure
LAYERS = 43
"""The layers of V4-Flash: of the target, where no model is named."""


def predict_file(file: Path, model: str = "") -> list[CurvePoint]:
    """Return DSpark's points at the concurrencies of a curve that was measured with MTP-1, by ascending concurrency.

    The file has either the columns of published/dspark_figures.csv, of which throughput over concurrency is taken and
    else throughput over each user's rate; or at least two of COLUMNS, and optionally model. `model` says which one, if
    there are several; it and the file name models as hardware/models/ does, or without the maker. A model that is not
    there, or none, is taken to have V4-Flash's 43 layers. Raises ConfigError that names the file and the line.
    """
    rows = _rows(file)
    columns = set(rows[0][1]) if rows else set()
    figure = set(FIGURE_COLUMNS) <= columns
    if not figure and len(columns & set(COLUMNS)) < 2:
        raise ConfigError(
            f"{file}: has neither the columns {', '.join(FIGURE_COLUMNS)} nor two of {', '.join(COLUMNS)}, "
            "or has no rows"
        )
    if figure:
        rows = [(line, row) for line, row in rows if row["drafter"] == BASELINE]
        rows = [(line, row) for line, row in rows if row["figure"] in (THROUGHPUT, INTERACTIVITY)]
        if not rows:
            raise ConfigError(f"{file}: no row has {BASELINE} as drafter, and figure {THROUGHPUT} or {INTERACTIVITY}")
    name, rows = _of_model(file, rows, model)
    points = list(_figure(file, rows) if figure else _plain(file, rows))
    if len(points) < 3:
        raise ConfigError(f"{file}: {len(points)} points are too few for a curve: at least 3 are needed")
    points.sort(key=lambda point: point.concurrency)
    return predicted(points, layers_of(name) or LAYERS, Drafting())


def as_csv(points: Sequence[CurvePoint]) -> str:
    """Return the points as CSV with a header, and a newline at the end."""
    lines = [",".join((*COLUMNS, "verify_tokens"))]
    lines += [f"{p.concurrency:.6g},{p.throughput:.6g},{p.user_rate:.6g},{p.verify_tokens:.6g}" for p in points]
    return "\n".join(lines) + "\n"


@cache
def figure(figure: str, model: str, drafter: str) -> tuple[tuple[float, float], ...]:
    """(x, y) of a line in the DSpark paper's figures, digitised, by x; without readings of the origin."""
    found = []
    for _, row in _rows(FIGURES):
        if (row["figure"], row["model"], row["drafter"]) == (figure, model, drafter):
            x, y = float(row["x"]), float(row["y"])
            if abs(x) >= ORIGIN:
                found.append((x, y))
    return tuple(sorted(found))


def figure_points(model: str, drafter: str = BASELINE) -> list[CurvePoint]:
    """Throughput over concurrency as in the paper's figure 8, the fewest requests first."""
    return [CurvePoint(x, y) for x, y in figure(THROUGHPUT, model, drafter)]


def layers_of(model: str) -> int | None:
    """Return the layers of a model in hardware/models/, named with or without its maker; None for others."""
    wanted = model.lower()
    for known in known_models():
        if wanted and (known == wanted or known.partition("-")[2] == wanted):
            return len(Model.of(known).layers)
    return None


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, fields by column)"""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True)
            found = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: {error}") from None
    for line, row in found:
        if None in row or None in row.values():
            raise ConfigError(f"{file}, line {line}: should have as many fields as the first line")
    return found


def _of_model(
    file: Path, rows: list[tuple[int, dict[str, str]]], model: str
) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """The model's name, and its rows."""
    names = list(dict.fromkeys(row.get("model", "") for _, row in rows))
    if names == [""]:
        if model and layers_of(model) is None:
            raise ConfigError(f"model {model!r} is not known; {', '.join(known_models())} are")
        return model, rows
    if not model:
        if len(names) > 1:
            raise ConfigError(f"{file}: has several models; which one: {', '.join(names)}?")
        return names[0], rows
    chosen = [name for name in names if _short(name) == _short(model)]
    if not chosen:
        raise ConfigError(f"{file}: has no model {model!r}; it has {', '.join(names)}")
    return chosen[0], [(line, row) for line, row in rows if row["model"] in chosen]


def _short(model: str) -> str:
    return model.lower().removeprefix("deepseek-")


def _figure(file: Path, rows: list[tuple[int, dict[str, str]]]) -> Iterator[CurvePoint]:
    wanted = THROUGHPUT if any(row["figure"] == THROUGHPUT for _, row in rows) else INTERACTIVITY
    for line, row in rows:
        if row["figure"] != wanted:
            continue
        x, y = _number(file, line, row, "x"), _number(file, line, row, "y")
        if abs(x) < ORIGIN and (x <= 0 or y <= 0 or wanted == THROUGHPUT):
            continue
        _check_positive(file, line, {"x": x, "y": y})
        yield CurvePoint(x, y) if wanted == THROUGHPUT else CurvePoint(y / x, y)


def _plain(file: Path, rows: list[tuple[int, dict[str, str]]]) -> Iterator[CurvePoint]:
    for line, row in rows:
        values = {name: _number(file, line, row, name) for name in COLUMNS if row.get(name)}
        _check_positive(file, line, values)
        if len(values) < 2:
            raise ConfigError(f"{file}, line {line}: two of {', '.join(COLUMNS)} are needed")
        concurrency, throughput, rate = (values.get(name, math.nan) for name in COLUMNS)
        if math.isnan(concurrency):
            concurrency = throughput / rate
        yield CurvePoint(concurrency, concurrency * rate if math.isnan(throughput) else throughput)


def _number(file: Path, line: int, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        raise ConfigError(f"{file}, line {line}: {name}: {row[name]!r} is no number") from None
    if not math.isfinite(value):
        raise ConfigError(f"{file}, line {line}: {name}: {row[name]} is not finite")
    return value


def _check_positive(file: Path, line: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{file}, line {line}: {name}: {value:g} is not positive")
