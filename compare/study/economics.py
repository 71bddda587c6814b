"""Power and cost of devices."""

from collections.abc import Iterable
from dataclasses import dataclass

from compare.study.scenario import Scenario, middle
from compare.study.setups import DeviceUnits
from engine.errors import ConfigError
from hardware.device import Numbers


@dataclass(frozen=True)
class Economics:
    """Under a scenario's assumptions. `capital`: $ per second of owning what costs a dollar."""

    power: str
    energy: float
    capital: float

    @classmethod
    def of(cls, scenario: Scenario) -> "Economics":
        return cls(scenario.power, scenario.energy / 3.6e6, middle(scenario.capital) / 3600 / 1e6)

    def watts(self, parts: Iterable[DeviceUnits]) -> float:
        return sum(part.units * self._watts(part.numbers) for part in parts)

    def dollars_per_second(self, parts: Iterable[DeviceUnits]) -> float:
        return sum(part.units * self._dollars(part.numbers) for part in parts)

    def _watts(self, numbers: Numbers) -> float:
        if self.power == "all-in":
            return numbers.get("power")
        if not numbers.has("chip_power"):
            raise ConfigError(f"power: {numbers.device.name} has no figure for the chip alone; take all-in")
        return numbers.get("chip_power")

    def _dollars(self, numbers: Numbers) -> float:
        """Return the published cost of owning one; where there is none, that of its price and its energy."""
        if numbers.has("cost"):
            return numbers.get("cost")
        return numbers.get("price") * self.capital + numbers.get("power") * self.energy


def per_megawatt(throughput: float, watts: float) -> float:
    """Tokens per second of a megawatt."""
    return throughput / (watts / 1e6)


def per_million(throughput: float, dollars_per_second: float) -> float:
    """$ of a million tokens."""
    return 1e6 * dollars_per_second / throughput
