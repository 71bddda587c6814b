"""Numbers of a report, with their labels and sources."""

import re
from collections.abc import Callable, Sequence

from compare.report.document import Basis, Name, Number, SourceLink
from compare.study.measured import MeasuredSystem
from compare.study.study import Best, Study
from hardware.figure import Figure

STEADY = "steady state of modelled steps; what they depend on is under Assumptions"


def modelled(value: float, unit: str, source: str = STEADY, ends: Sequence[float] = ()) -> Number:
    """`ends`: the values over all unpublished figures, of which the smallest and the largest are shown."""
    low, high = (min(ends), max(ends)) if ends else (None, None)
    return Number(value, unit, Basis.MODELLED, source, low, high)


def assumed(value: float, unit: str, source: str = "the scenario's file") -> Number:
    return Number(value, unit, Basis.ASSUMED, source)


def percent(share: float) -> Number:
    return modelled(100 * share, "%")


def published(figure: Figure) -> Number:
    """A published figure in its own unit; of a range, the middle with its ends."""
    if figure.unknown is not None:
        low, high = figure.bounds
        return Number(figure.typical, figure.unit, Basis.UNKNOWN, f"{figure.source} ({figure.date})", low, high)
    assert figure.label is not None
    return Number(figure.typical, figure.unit, Basis(figure.label), f"{figure.source} ({figure.date})")


def ranged(
    studies: Sequence[Study], name: str, user_rate: float, measure: Callable[[Best], float], unit: str, slow: float
) -> Number | None:
    """Return a system's measure at some speed: in the first study, with its range over all of them. None if the system
    is too slow in the first; `slow` is the end of the range where it is too slow."""
    found = [study.best(name, user_rate) for study in studies]
    if found[0] is None:
        return None
    values = [measure(best) for best in found if best is not None]
    ends = [*values, *([slow] if None in found else [])]
    return modelled(values[0], unit, ends=ends if len(studies) > 1 else ())


def basis_of(measured: MeasuredSystem) -> Basis:
    return Basis.EMULATED if measured.emulated else Basis.MEASURED


def sourced(text: str) -> SourceLink | Name:
    """A source as a link, if it is an address."""
    return SourceLink(text, text) if re.match(r"https?://\S+$", text) else Name(text)


def key_of(name: str) -> str:
    """Return the name as a part of the key of a table or chart."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
