"""The content of a report: text, tables and charts, whose numbers have labels and sources.

The same document becomes a page, pictures, JSON and CSV (page.py, charts.py, files.py), so that they cannot
differ. Text may hold digits only in a `Number`, which has a label and a source, or in a `Name`.
"""

import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Basis(enum.StrEnum):
    """The label of a number: what it is based on. The first five are those of published figures
    (hardware/figure.py)."""

    VENDOR = "vendor"
    MEASURED = "measured"
    ESTIMATE = "estimate"
    INFERRED = "inferred"
    UNVERIFIED = "unverified"
    UNKNOWN = "unknown"  # not published: somewhere in a range
    ASSUMED = "assumed"  # the scenario says so
    MODELLED = "modelled"  # from operations, bytes and latencies
    SIMULATED = "simulated"  # the modelled steps under a workload, with queues
    EMULATED = "emulated"  # measured at a modelled pace


class NumberJson(TypedDict):
    """A `Number` in the report's JSON. Infinite values are None."""

    value: float | None
    unit: str
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    label: str
    source: str
    text: str


@dataclass(frozen=True)
class Number:
    """A number that a reader sees. `low` and `high`: its range over all unpublished figures that it depends on."""

    value: float
    unit: str
    basis: Basis
    source: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        assert self.source and not math.isnan(self.value), self

    @property
    def text(self) -> str:
        """Return the number as it is shown: three significant digits, its unit, and its range if it has one."""
        shown, low, high = (_digits(value, self.unit) for value in (self.value, self.low, self.high))
        if low != high:
            shown += f" ({low} to {high})"
        if not self.unit:
            return shown
        if self.unit == "$":
            return f"-${shown[1:]}" if shown.startswith("-") else f"${shown}"
        return f"{shown} {self.unit}"

    def as_json(self) -> NumberJson:
        value, unit, label = _finite(self.value), self.unit, str(self.basis)
        if self.low is None or self.high is None:
            return {"value": value, "unit": unit, "label": label, "source": self.source, "text": self.text}
        return {
            "value": value,
            "unit": unit,
            "low": _finite(self.low),
            "high": _finite(self.high),
            "label": label,
            "source": self.source,
            "text": self.text,
        }


@dataclass(frozen=True)
class Name:
    """A name, which may have digits: of a model, a device, a scenario's key."""

    text: str


@dataclass(frozen=True)
class SourceLink:
    """A source that can be opened."""

    text: str
    url: str


TextPart = str | Number | Name | SourceLink
Cell = str | Number | Name | SourceLink | None
"""None: there is no such number, for the reason that the table's note gives."""


@dataclass(frozen=True)
class Paragraph:
    """`kind`: text, or a verdict, a warning."""

    parts: tuple[TextPart, ...]
    kind: str = "text"

    @classmethod
    def of(cls, *parts: TextPart, kind: str = "text") -> "Paragraph":
        return cls(parts, kind)

    def __post_init__(self) -> None:
        assert self.kind in ("text", "verdict", "warning"), self.kind
        _no_digits(self.parts)


@dataclass(frozen=True)
class Table:
    """`subject`, of every block that has one: whose table or plot it is. A name, which comes before the title."""

    key: str
    title: str
    columns: tuple[TextPart, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: tuple[TextPart, ...] = ()
    subject: str = ""

    def __post_init__(self) -> None:
        _no_digits((self.title, *self.columns, *self.note, *(cell for row in self.rows for cell in row)))
        assert all(len(row) == len(self.columns) for row in self.rows), self.key


@dataclass(frozen=True)
class Axis:
    title: str
    unit: str
    log: bool = False


@dataclass(frozen=True)
class Series:
    """Points (x, y) in their order. `style`: line (with points), points, or bars (then x are names). `dashed` for what
    is not the system itself: a bound, a baseline."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    basis: Basis
    source: str
    style: str = "line"
    dashed: bool = False
    notes: tuple[str, ...] = ()
    """A note on each point, shown to a reader who points at it."""

    def __post_init__(self) -> None:
        assert self.style in ("line", "points", "bars"), self.style
        assert len(self.x) == len(self.y) and (not self.notes or len(self.notes) == len(self.x)), self.name


@dataclass(frozen=True)
class Mark:
    """A line across a plot at a value of one axis ("x" or "y"), with its name."""

    name: str
    axis: str
    at: Number

    def __post_init__(self) -> None:
        assert self.axis in ("x", "y"), self.axis


@dataclass(frozen=True)
class Plot:
    key: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    subject: str = ""

    def __post_init__(self) -> None:
        _no_digits((self.title,))


@dataclass(frozen=True)
class Heat:
    """A value over two others. `z[row][column]` is for y[row], x[column]; None: there is no such value (`missing` says
    what that means, such as "never pays")."""

    key: str
    title: str
    x: Axis
    y: Axis
    z: Axis
    x_values: tuple[float, ...]
    y_values: tuple[float, ...]
    z_values: tuple[tuple[float | None, ...], ...]
    basis: Basis
    source: str
    missing: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        _no_digits((self.title, self.missing))
        assert len(self.z_values) == len(self.y_values), self.key
        assert all(len(row) == len(self.x_values) for row in self.z_values), self.key


@dataclass(frozen=True)
class Waterfall:
    """A chart of how a value changes step by step. Each step has the value that is reached with it."""

    key: str
    title: str
    y: Axis
    steps: tuple[tuple[str, Number], ...]
    subject: str = ""

    def __post_init__(self) -> None:
        _no_digits((self.title,))


@dataclass(frozen=True)
class Tornado:
    """A chart of what a result depends on: (name, result with that at its lowest, at its highest)."""

    key: str
    title: str
    x: Axis
    base: Number
    bars: tuple[tuple[str, Number, Number], ...]
    subject: str = ""

    def __post_init__(self) -> None:
        _no_digits((self.title,))


Chart = Plot | Heat | Waterfall | Tornado
Block = Paragraph | Table | Chart


@dataclass(frozen=True)
class ReportSection:
    key: str
    title: str
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        _no_digits((self.title,))


@dataclass(frozen=True)
class ReportDocument:
    """`about`: name of the scenario, date, versions: what the JSON says first. Keys are names of files and of places in
    the page: a section's and a block's are its own."""

    title: str
    about: Mapping[str, str]
    sections: tuple[ReportSection, ...]

    def __post_init__(self) -> None:
        _no_digits(tuple(self.about))
        keys = [block.key for block in self.blocks if not isinstance(block, Paragraph)]
        for some in (keys, [section.key for section in self.sections]):
            wrong = [key for key in some if some.count(key) > 1 or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", key)]
            if wrong:
                raise ValueError(f"{wrong}: keys are of a-z, 0-9, _ and -, and each is there once")

    @property
    def blocks(self) -> list[Block]:
        return [block for section in self.sections for block in section.blocks]


def _digits(value: float | None, unit: str) -> str:
    """Return whole numbers of up to five digits as they are, others with three or four significant digits."""
    if value is None:
        return ""
    if math.isinf(value):
        return "infinite"
    if value == round(value) and abs(value) < 1e5:
        return f"{value:,.0f}"
    size = math.floor(math.log10(abs(value)))
    if size >= 3:
        return f"{round(value, 3 - size):,.0f}"
    if size < -4:
        return f"{value:.2e}"
    shown = f"{value:.{max(0, 2 - size)}f}"
    exact = "." in shown and float(shown) == value and unit != "$"
    return shown.rstrip("0").rstrip(".") if exact else shown


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _no_digits(parts: Sequence[TextPart | None]) -> None:
    for part in parts:
        if isinstance(part, str) and re.search(r"\d", part):
            raise ValueError(f"{part!r} has a number without label and source")
