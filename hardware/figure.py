"""A published number: its value and unit, the kind of its source, where and when. An unpublished one is a range."""

import enum
import math
from datetime import date as Date
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.section import Section

BYTES = {"GB": 1e9, "TB": 1e12, "GiB": 2.0**30}
BYTES_PER_SECOND = {"GB/s": 1e9, "TB/s": 1e12, "PB/s": 1e15}
OPERATIONS_PER_SECOND = {"TFLOP/s": 1e12, "PFLOP/s": 1e15}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}
WATTS = {"W": 1.0, "kW": 1e3}
DOLLARS = {"$": 1.0}
DOLLARS_PER_SECOND = {"$/h": 1 / 3600}
COUNT = {"count": 1.0}
UNITS = {
    **BYTES,
    **BYTES_PER_SECOND,
    **OPERATIONS_PER_SECOND,
    **SECONDS,
    **WATTS,
    **DOLLARS,
    **DOLLARS_PER_SECOND,
    **COUNT,
}
"""What one of each is in the plain unit of its kind."""


class Label(enum.StrEnum):
    """The kind of a figure's source."""

    VENDOR = "vendor"  # stated by its vendor
    MEASURED = "measured"  # measured on the real system
    ESTIMATE = "estimate"  # estimated by analysts or the press
    INFERRED = "inferred"  # arithmetic on other figures, or a conclusion from them
    UNVERIFIED = "unverified"  # one weak source, or from memory


class Figure(Section):
    """Either a `value` with label, source and date, or an `unknown` range with the reason for it in `source`."""

    value: float | None = None
    """In `unit`."""
    unknown: tuple[float, float] | None = None
    """The lowest and the highest value that it may have, in `unit`, where it is not published: results are given over
    the whole range."""
    unit: str
    """One of UNITS."""
    label: Label | None = None
    """The kind of its source; none for an unknown."""
    source: Annotated[str, Field(min_length=8)]
    """An address or a document; of an unknown, why this range."""
    date: Date
    """When it was looked up."""

    @model_validator(mode="after")
    def _known_or_unknown(self) -> Self:
        if (self.value is None) == (self.unknown is None):
            raise ValueError("either value or unknown, and not both")
        if (self.label is None) == (self.unknown is None):
            raise ValueError("a value has a label, an unknown has none")
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is not one of {', '.join(UNITS)}")
        low, high = self.bounds
        if not (math.isfinite(high) and 0 < low <= high):
            raise ValueError(f"{low:g} to {high:g} is no range of positive numbers")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that it may have, in `unit`."""
        if self.unknown is not None:
            return self.unknown
        assert self.value is not None
        return self.value, self.value

    @property
    def typical(self) -> float:
        """The value; of a range, its geometric middle, in `unit`."""
        low, high = self.bounds
        return math.sqrt(low * high) if low < high else low

    def si(self, value: float | None = None) -> float:
        """`value` (or the typical one) in bytes, seconds, operations, watts or dollars, and these per second."""
        return (self.typical if value is None else value) * UNITS[self.unit]
