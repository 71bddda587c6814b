"""The systems of a scenario: the best that each can do at some speed, and its cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from compare.study.dspark import Drafting
from compare.study.economics import Economics, per_megawatt, per_million
from compare.study.scenario import Scenario
from compare.study.setups import BuiltSystems
from compare.study.steady import OperatingPoint, Steady
from engine.errors import ConfigError
from hardware.figure import Figure

CURVE = 24  # points of a curve
STEEP = 4.0


@dataclass(frozen=True)
class Best:
    """An operating point, with its power and cost."""

    point: OperatingPoint
    watts: float
    dollars_per_second: float | None

    @property
    def per_megawatt(self) -> float:
        """Output tokens per second."""
        return per_megawatt(self.point.throughput, self.watts)

    @property
    def per_million(self) -> float | None:
        """$ of a million output tokens."""
        return None if self.dollars_per_second is None else per_million(self.point.throughput, self.dollars_per_second)

    @property
    def per_unit(self) -> float:
        """Output tokens per second of each unit of decode and prefill; those of a helper are not counted."""
        helper = self.point.setup.helper
        units = sum(part.units for part in self.point.machines if part is not helper)
        return self.point.throughput / units


@dataclass(frozen=True)
class Rivals:
    """Two systems at one speed: a contender, and what it is held against."""

    contender: str
    against: str
    user_rate: float

    def __str__(self) -> str:
        return f"{self.contender}, {self.user_rate:g} tok/s"


@dataclass(frozen=True)
class Study:
    """`drafting` is made once and shared by all variations that do not change it."""

    scenario: Scenario
    drafting: Drafting
    known: dict[tuple[str, float], tuple[Best, ...]] = field(default_factory=dict, repr=False)
    """What systems were found to do at some speed, in this study or one that it varies."""

    @classmethod
    def of(cls, scenario: Scenario) -> "Study":
        return cls(scenario, scenario.acceptance.drafting)

    def varied(self, scenario: Scenario) -> "Study":
        same = scenario.acceptance == self.scenario.acceptance
        return Study(scenario, self.drafting if same else scenario.acceptance.drafting, self.known)

    @cached_property
    def built(self) -> BuiltSystems:
        return BuiltSystems(self.scenario)

    @cached_property
    def economics(self) -> Economics:
        return Economics.of(self.scenario)

    @cached_property
    def steady(self) -> dict[str, list[Steady]]:
        setups = self.built.setups
        return {name: [Steady.of(setup, self.scenario, self.drafting) for setup in setups[name]] for name in setups}

    @cached_property
    def rests_on(self) -> dict[tuple[str, str], Figure]:
        """Return, by device and name, the unpublished figures that the systems' times, power and cost depend on."""
        for one in (steady for choices in self.steady.values() for steady in choices):
            self.valued(one.at(1))
        return self.built.unknown

    def valued(self, point: OperatingPoint) -> Best:
        parts = point.machines
        known = all(part.numbers.has("cost") or part.numbers.has("price") for part in parts)
        dollars = self.economics.dollars_per_second(parts) if known else None
        return Best(point, self.economics.watts(parts), dollars)

    def best(self, name: str, user_rate: float) -> Best | None:
        """The cheapest way (or else that with least power) to give each user so many tokens per second; None if the
        system is too slow for that."""
        return min(self.ways(name, user_rate), key=_worth, default=None)

    def ways(self, name: str, user_rate: float) -> tuple[Best, ...]:
        """Return an operating point of each size of replica that is fast enough, with the most requests that still
        are."""
        key = (self._rests(name), user_rate)
        if key not in self.known:
            found = [one.fullest(user_rate, self.max_requests) for one in self.steady[name]]
            self.known[key] = tuple(self.valued(point) for point in found if point is not None)
        return self.known[key]

    def _rests(self, name: str) -> str:
        """All of the scenario that a system depends on: variations that leave it alone need not compute it again."""
        if name not in self._rested:
            scenario, system = self.scenario, self.scenario.systems[name]
            parts = [one for one in (system.decode, system.prefill, system.helper) if one is not None]
            devices = {one.device: scenario.devices[one.device] for one in parts}
            other = scenario.model_dump(
                exclude={"devices", "systems", "measured", "predictions", "title", "about", "contenders", "steps"}
            )
            self._rested[name] = repr((name, system, devices, other))
        return self._rested[name]

    @cached_property
    def _rested(self) -> dict[str, str]:
        return {}

    def strained(self, name: str, user_rate: float, measure: "Measure") -> float:
        """Return the measure at some speed. Where the system is too slow for that, return the measure at its fastest,
        times how much too slow that is (to a high power), so that two such cases can be compared."""
        best = self.best(name, user_rate)
        if best is not None:
            return measure(best)
        fastest = max((one.at(1) for one in self.steady[name]), key=lambda point: point.user_rate)
        return measure(self.valued(fastest)) * math.pow(user_rate / fastest.user_rate, STEEP)

    def curve(self, name: str) -> list[Best]:
        """Return points from the highest speed of one user to the highest throughput, in even steps of speed."""
        fast = max(one.at(1).user_rate for one in self.steady[name])
        slow = min(one.at(min(self.max_requests, one.setup.max_requests)).user_rate for one in self.steady[name])
        rates = np.geomspace(fast * (1 - 1e-9), max(slow, fast / 100), CURVE) if fast > slow else [fast * (1 - 1e-9)]
        found = [self.best(name, float(rate)) for rate in rates]
        return [best for number, best in enumerate(found) if best and best not in found[:number]]

    @property
    def rivals(self) -> list[Rivals]:
        """All that the scenario asks a verdict for."""
        pairs = self.scenario.contenders.items()
        return [Rivals(*pair, speed) for speed in self.scenario.decide_at for pair in pairs]

    @property
    def max_requests(self) -> int:
        """The largest number of requests in a replica."""
        return self.scenario.max_requests


Measure = Callable[[Best], float]


def dollars(best: Best) -> float:
    """Return the dollars of a million tokens. Raise ConfigError if the cost of a device is unknown."""
    if best.per_million is None:
        raise ConfigError(f"{best.point.setup.name}: neither cost nor price is known of one of its devices")
    return best.per_million


def joules(best: Best) -> float:
    """Return the joules of a token."""
    return best.watts / best.point.throughput


def _worth(best: Best) -> float:
    return joules(best) if best.per_million is None else best.per_million
