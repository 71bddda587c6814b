"""Inputs that are uncertain: figures that are not published, and uses that differ. Each is tried at its lowest and at
its highest value, alone and together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare.study.scenario import LOSSES, AcceptanceSection, LossesSection, Scenario, WorkloadSection
from compare.study.setups import varied
from compare.study.study import Measure, Study

ENGINES = (
    "engines differ: on eight B200 a token of V4-Flash takes SGLang 1.88 ms with DSpark, one of GLM-5 TileRT 2.9 "
    "(https://newsletter.semianalysis.com/p/ultra-high-interactivity-on-nvidia); how much less it can be is ours"
)
BETTER, WORSE = 1.1, 0.75  # of what drafts gain: other text, other temperature
Change = Callable[[Scenario], Scenario]
StudyValue = Callable[[Study], float]
"""Infinite where a system cannot do what is asked."""


@dataclass(frozen=True)
class Unknown:
    """An unknown input. `low` and `high` make a scenario that has it at its lowest or highest value; `at` makes one
    that has it at any value, if it is one number."""

    name: str
    low: Change
    high: Change
    bounds: tuple[float, float]
    unit: str
    why: str
    at: Callable[[float], Change] | None = None

    @classmethod
    def number(
        cls, name: str, bounds: tuple[float, float], unit: str, why: str, at: Callable[[float], Change]
    ) -> "Unknown":
        return cls(name, at(bounds[0]), at(bounds[1]), bounds, unit, why, at)


def unknowns(study: Study, *systems: str) -> list[Unknown]:
    """Return what these systems depend on and is not public: figures and losses of devices that are ranges, and the
    cost of capital. Where losses are fitted, the fitted time of a layer includes a hop of any length."""
    found = []
    parts = [study.scenario.systems[system] for system in systems]
    devices = {part.device for one in parts for part in (one.decode, one.prefill, one.helper) if part is not None}
    for (device, name), figure in study.rests_on.items():
        fitted = isinstance(study.scenario.devices[device].losses, str)
        if device not in devices or (fitted and name == "hop"):
            continue
        found.append(
            Unknown.number(f"{device}: {name}", figure.bounds, figure.unit, figure.source, _figure(device, name))
        )
    for device, section in study.scenario.devices.items():
        if device in devices and isinstance(section.losses, LossesSection):
            for name in LOSSES:
                value = getattr(section.losses, name)
                if isinstance(value, tuple) and name not in section.assumed:
                    unit = "us" if name.endswith("_us") else ""
                    found.append(
                        Unknown.number(f"{device}: {name}", value, unit, section.losses.source, _figure(device, name))
                    )
    capital = study.scenario.capital
    if isinstance(capital, tuple):
        found.append(Unknown.number("cost of capital", capital, "$/h per $1M", "the scenario's range", _capital))
    return found


def uses(scenario: Scenario) -> list[Unknown]:
    """Return what may differ for another user."""
    workload = scenario.workload
    return [
        Unknown(
            "what drafts gain", _gain(WORSE), _gain(BETTER), (WORSE, BETTER), "x", "other text and temperatures: ours"
        ),
        Unknown("context", _context(0.5), _context(4.0), (0.5, 4.0), "x", "prompts half and four times as long: ours"),
        Unknown.number(
            "prompts in cache", (0.0, max(0.9, workload.cached_share)), "", "from none to nine tenths: ours", _cached
        ),
        Unknown.number("utilisation of prefill", (0.5, 0.95), "", "from ample to tight: ours", _utilisation),
        Unknown.number("time of a layer on GPUs", (0.4, 1.0), "x", ENGINES, _layers),
    ]


@dataclass(frozen=True)
class Effect:
    """A result with one unknown at its lowest and at its highest, all others in the middle."""

    unknown: Unknown
    low: float
    high: float

    @property
    def size(self) -> float:
        return max(self.low, self.high) / min(self.low, self.high) if min(self.low, self.high) > 0 else float("inf")


def effects(study: Study, result: StudyValue, of: Sequence[Unknown]) -> list[Effect]:
    """The largest first; what changes nothing is left out."""
    found = [
        Effect(one, result(study.varied(one.low(study.scenario))), result(study.varied(one.high(study.scenario))))
        for one in of
    ]
    return sorted((one for one in found if one.low != one.high), key=lambda one: one.size, reverse=True)


def together(study: Study, found: Sequence[Effect]) -> tuple[Study, Study]:
    """Every unknown at the end that makes the result smallest; and largest. As each does alone: what they do to each
    other is not searched for."""
    smallest = largest = study.scenario
    for effect in found:
        to_small, to_large = effect.unknown.low, effect.unknown.high
        if effect.low > effect.high:
            to_small, to_large = to_large, to_small
        smallest, largest = to_small(smallest), to_large(largest)
    return study.varied(smallest), study.varied(largest)


def span(study: Study, name: str, user_rate: float, measure: Measure) -> tuple[Study, Study]:
    """The studies in which a system's measure at some speed is smallest and largest, over all that is not public."""

    def result(one: Study) -> float:
        return one.strained(name, user_rate, measure)

    return together(study, effects(study, result, unknowns(study, name)))


def threshold(study: Study, result: StudyValue, unknown: Unknown, limit: float) -> float | None:
    """The value of an unknown at which the result passes `limit`, others in the middle; None if it does not in its
    range."""
    if unknown.at is None:
        return None
    low, high = unknown.bounds
    below = [result(study.varied(unknown.at(end)(study.scenario))) <= limit for end in (low, high)]
    if below[0] == below[1]:
        return None
    for _ in range(20):
        middle = (low * high) ** 0.5 if low > 0 else (low + high) / 2
        if (result(study.varied(unknown.at(middle)(study.scenario))) <= limit) == below[0]:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _figure(device: str, name: str) -> Callable[[float], Change]:
    return lambda value: lambda scenario: varied(scenario, device, name, value)


def _gain(factor: float) -> Change:
    """The same shape of acceptance, where drafts gain so many times as much, as far as there is room."""

    def changed(scenario: Scenario) -> Scenario:
        old = scenario.acceptance
        factor_here = min(factor, 0.98 / max(old.mtp - 1, old.dspark[0] - 1))
        lengths = tuple(1 + factor_here * (length - 1) for length in old.dspark)
        new: AcceptanceSection = old.model_copy(update={"mtp": 1 + factor_here * (old.mtp - 1), "dspark": lengths})
        return scenario.model_copy(update={"acceptance": new})

    return changed


def _context(factor: float) -> Change:
    def changed(scenario: Scenario) -> Scenario:
        tokens = max(1, round(factor * scenario.workload.input_tokens))
        return _with_workload(scenario, input_tokens=tokens)

    return changed


def _cached(share: float) -> Change:
    return lambda scenario: _with_workload(scenario, cached_share=share)


def _utilisation(share: float) -> Change:
    return lambda scenario: scenario.model_copy(update={"utilisation": share})


def _layers(factor: float) -> Change:
    return lambda scenario: scenario.model_copy(update={"gpu_layers": factor})


def _capital(value: float) -> Change:
    return lambda scenario: scenario.model_copy(update={"capital": value})


def _with_workload(scenario: Scenario, **changes: float) -> Scenario:
    new: WorkloadSection = scenario.workload.model_copy(update=changes)
    return scenario.model_copy(update={"workload": new})
