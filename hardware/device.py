"""A device that models may run on, from its file in hardware/devices/, and its figures as numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.errors import ConfigError
from engine.section import Section, read_yaml
from hardware import figure as units
from hardware.figure import Figure

DEVICES = Path(__file__).parent / "devices"
PRECISIONS = ("fp4", "fp8", "bf16")
KINDS = {
    "memory": units.BYTES,
    "bandwidth": units.BYTES_PER_SECOND,
    **dict.fromkeys(PRECISIONS, units.OPERATIONS_PER_SECOND),
    **dict.fromkeys(("scale_up", "scale_out"), units.BYTES_PER_SECOND),
    **dict.fromkeys(("hop", "bridge"), units.SECONDS),
    **dict.fromkeys(("chip_power", "power", "rack_power"), units.WATTS),
    **dict.fromkeys(("price", "rack_price"), units.DOLLARS),
    **dict.fromkeys(("cost", "rent"), units.DOLLARS_PER_SECOND),
    **dict.fromkeys(("scale_up_units", "rack_units"), units.COUNT),
}
"""The units that each figure may have."""
SHARES = {"power": "rack_power", "price": "rack_price"}
"""Figures of which a unit has its share of the rack's, if it has none of its own."""


class Device(Section):
    """All figures are of one `unit`, but for those of the rack."""

    name: str
    """As its maker calls it."""
    kind: Literal["gpu", "lpu", "wafer", "chip"]
    """A processor with memory beside it (gpu, chip), or with nothing but memory on it (lpu, wafer)."""
    unit: str
    """What one of them is: GPU, LPU, wafer, chip."""
    memory: Figure
    """Bytes for weights and cache."""
    bandwidth: Figure
    """Bytes per second between that memory and arithmetic."""
    fp4: Figure | None = None
    """Dense operations per second; a multiply-add is two. None: it has no such arithmetic."""
    fp8: Figure | None = None
    """Dense operations per second."""
    bf16: Figure | None = None
    """Dense operations per second."""
    scale_up: Figure | None = None
    """Bytes per second, one way, to the others of its domain."""
    scale_up_units: Figure | None = None
    """How many such units make one domain."""
    hop: Figure | None = None
    """Seconds of one message within the domain."""
    scale_out: Figure | None = None
    """Bytes per second, one way, to devices outside the domain."""
    bridge: Figure | None = None
    """Seconds of one message to a device of another kind that works on the same step."""
    chip_power: Figure | None = None
    """Watts of the unit itself."""
    power: Figure | None = None
    """Watts of the unit with its share of everything around it, as the meter sees it."""
    price: Figure | None = None
    """Dollars."""
    cost: Figure | None = None
    """Dollars per second of owning one, all in."""
    rent: Figure | None = None
    """Dollars per second of renting one."""
    rack_units: Figure | None = None
    """Units in a rack, the smallest unit of sale."""
    rack_power: Figure | None = None
    """Watts of a rack."""
    rack_price: Figure | None = None
    """Dollars of a rack."""
    notes: Annotated[list[str], Field(default_factory=list)]
    """What else a reader must know."""

    @model_validator(mode="after")
    def _units_are_of_the_right_kind(self) -> Self:
        for name, figure in self.figures.items():
            if figure.unit not in KINDS[name]:
                raise ValueError(f"{name}: {figure.unit} is none of {', '.join(KINDS[name])}")
        return self

    @classmethod
    def load(cls, name: str) -> "Device":
        """Return a device of hardware/devices/ or of a YAML file. Raise ConfigError that names the file and figure."""
        file = Path(name) if name.endswith((".yaml", ".yml")) else DEVICES / f"{name}.yaml"
        if not file.is_file():
            raise ConfigError(f"device {name!r} is not known; {', '.join(known_devices())} are, or give a YAML file")
        return read_yaml(file, cls)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Return the figures that it has, by name."""
        return {name: figure for name, figure in self if isinstance(figure, Figure)}

    def arithmetic(self, precision: str) -> str:
        """The precision that operands stored in `precision` are multiplied in here: the narrowest it has that is no
        narrower. Raises ConfigError if there is none."""
        wide_enough = PRECISIONS[PRECISIONS.index(precision) :]
        found = next((name for name in wide_enough if getattr(self, name) is not None), None)
        if found is None:
            raise ConfigError(f"{self.name} has no arithmetic for {precision}")
        return found


def known_devices() -> list[str]:
    return sorted(file.stem for file in DEVICES.glob("*.yaml"))


@dataclass(frozen=True)
class Numbers:
    """A device's figures as numbers in SI units. An unpublished figure has the value `assumed` (in the figure's unit),
    or else the middle of its range; `used` gathers every figure that was asked for: a result rests on these."""

    device: Device
    assumed: Mapping[str, float] = field(default_factory=dict)
    used: dict[str, Figure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.assumed.items():
            figure = self.device.figures.get(name)
            if figure is None:
                raise ConfigError(f"{self.device.name} has no figure {name!r}; it has {', '.join(self.device.figures)}")
            if not 0 < value < math.inf:
                raise ConfigError(f"{self.device.name}.{name}: {value:g} is not positive")

    def get(self, name: str) -> float:
        """Raises ConfigError if the device has no such figure, and no rack's that it is a share of."""
        if name in self.device.figures:
            return self._own(name)
        if not self.has(name):
            raise ConfigError(f"{self.device.name} has no figure for {name} (hardware/devices)")
        return self._own(SHARES[name]) / self._own("rack_units")

    def has(self, name: str) -> bool:
        known = self.device.figures
        return name in known or (SHARES.get(name) in known and "rack_units" in known)

    def _own(self, name: str) -> float:
        if name not in self._values:
            figure = self.device.figures[name]
            self.used[name] = figure
            self._values[name] = figure.si(self.assumed.get(name))
        return self._values[name]

    @cached_property
    def _values(self) -> dict[str, float]:
        return {}

    @property
    def unknown(self) -> dict[str, Figure]:
        """Return the figures that were used and are not published."""
        return {name: figure for name, figure in self.used.items() if figure.unknown is not None}
