"""Published points that predictions are fitted on or held against: the files of compare/published/."""

from collections.abc import Mapping
from datetime import date as Date
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from engine.errors import ConfigError
from engine.section import Section, read_yaml
from hardware.figure import Label

PUBLISHED = Path(__file__).parent
Above = Annotated[float, Field(gt=0)]


class PublishedPoint(Section):
    """A published point. Its unit, source and label are those of its set."""

    value: Above
    at: Above | None = None
    """Where on the set's axis `at` it lies."""
    name: str = ""
    """What tells it from others, where that is not a number."""
    requests: Above | None = None
    """Under way when it was measured, where that is known: of a replica."""
    note: str = ""


class PublishedSet(Section):
    """Points of one publication."""

    about: Annotated[str, Field(min_length=8)]
    """Model, machines and workload."""
    by: Annotated[str, Field(min_length=3)]
    """Who measured it."""
    label: Label
    source: Annotated[str, Field(min_length=8)]
    date: Date
    """When it was looked up."""
    unit: str
    """Of the values."""
    at: str = ""
    """Unit of the axis that points lie on."""
    points: Annotated[tuple[PublishedPoint, ...], Field(min_length=1)]

    def value(self, name: str) -> float:
        """Return the value of the point with that name."""
        return next(point.value for point in self.points if point.name == name)


@cache
def published_sets() -> Mapping[str, PublishedSet]:
    """Return all sets by name. Raise ConfigError that names the file and the key."""
    found: dict[str, PublishedSet] = {}
    for file in sorted(PUBLISHED.glob("*.yaml")):
        for name, one in read_sets(file).items():
            if name in found:
                raise ConfigError(f"{file}: {name} is in another file as well")
            found[name] = one
    return found


def read_sets(file: Path) -> dict[str, PublishedSet]:
    """Return the sets of one file by name. Raise ConfigError that names the file and the key."""
    return read_yaml(file, dict[str, PublishedSet])
