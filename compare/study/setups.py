"""The systems of a scenario as step times on so many machines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from compare.published.calibration import calibrated
from compare.study.scenario import LOSSES, Machines, Scenario, SystemSection, middle
from engine.errors import ConfigError
from engine.steptime import StepTimes
from hardware.device import Device, Numbers
from hardware.figure import Figure
from hardware.hybrid import Bridge, ExternalDrafter, Hybrid
from hardware.model import STORED, FeedForward, Model
from hardware.placement import MemoryFit, Placement, fewest
from hardware.roofline import DraftShape, Losses, Roofline

MAX_REQUESTS = 1 << 14
TAPPED = 3  # layers whose hidden states a DSpark drafter reads (its checkpoints have 3 to 5)


@dataclass(frozen=True)
class DeviceUnits:
    """A number of units of a device."""

    numbers: Numbers
    units: float


@dataclass(frozen=True)
class Setup:
    """A system, with one choice of units. `decode` and `helper` are one replica's parts; `prefill`: the times of a
    prefill replica, which has `prefill_part`; None: decode replicas prefill. `drafts` as in the scenario."""

    name: str
    times: StepTimes
    decode: DeviceUnits
    helper: DeviceUnits | None
    prefill: Roofline | None
    prefill_part: DeviceUnits | None
    max_requests: int
    drafts: str

    @property
    def parts(self) -> tuple[DeviceUnits, ...]:
        """Return the devices of a decode replica."""
        return (self.decode,) if self.helper is None else (self.decode, self.helper)


@dataclass
class BuiltSystems:
    """All systems of a scenario. `model` and every device's figures are read once; `setups` has a system's choices."""

    scenario: Scenario
    numbers: dict[str, Numbers] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        return Model.of(self.scenario.model)

    @cached_property
    def setups(self) -> Mapping[str, list[Setup]]:
        """Return each system's choices, without sizes that have no room for one request. Raise ConfigError for an
        unknown device and a model that does not fit."""
        found: dict[str, list[Setup]] = {}
        for name, system in self.scenario.systems.items():
            try:
                found[name] = list(self._choices(name, system))
            except ConfigError as error:
                raise ConfigError(f"systems.{name}: {error}") from None
        return found

    @property
    def unknown(self) -> dict[tuple[str, str], Figure]:
        """Return, by device and name, the unpublished figures that results depend on."""
        known = {device: section.assumed for device, section in self.scenario.devices.items()}
        return {
            (device, name): figure
            for device, numbers in self.numbers.items()
            for name, figure in numbers.unknown.items()
            if name not in known.get(device, {})
        }

    def of(self, device: str) -> Numbers:
        if device not in self.numbers:
            section = self.scenario.devices.get(device)
            assumed = {
                name: value for name, value in (section.assumed if section else {}).items() if name not in LOSSES
            }
            self.numbers[device] = Numbers(Device.load(device), assumed)
        return self.numbers[device]

    def losses(self, device: str) -> Losses:
        section = self.scenario.devices[device]
        layers = self.scenario.gpu_layers if self.of(device).device.kind == "gpu" else 1.0
        if isinstance(section.losses, str):
            found: Losses = calibrated(section.losses).losses
            source = f"{found.source}. {section.why}".strip()
            return replace(found, layer_seconds=layers * found.layer_seconds, source=source)
        values = {name: section.assumed.get(name, middle(getattr(section.losses, name))) for name in LOSSES}
        return Losses(
            values["compute"],
            values["memory"],
            values["network"],
            1e-6 * layers * values["layer_us"],
            1e-6 * values["step_us"],
            section.losses.source,
        )

    def _choices(self, name: str, system: SystemSection) -> Iterator[Setup]:
        for units in system.decode.units or (None,):
            setup = self._setup(name, system, units)
            if setup.max_requests:
                yield setup

    def _setup(self, name: str, system: SystemSection, units: int | None) -> Setup:
        drafter = self._drafter(system)
        prefill = prefill_part = None
        if system.prefill is not None:
            chosen = system.prefill.units[0] if system.prefill.units else None
            prefill = self._roofline(system.prefill, chosen, None)
            prefill_part = self._part(prefill)
        if system.helper is not None:
            times, decode, helper, max_requests = self._pair(system, units, drafter)
        else:
            times = self._roofline(system.decode, units, drafter)
            decode, helper = self._part(times), None
            max_requests = _fit(times).max_requests(self.longest)
        return Setup(name, times, decode, helper, prefill, prefill_part, min(max_requests, MAX_REQUESTS), system.drafts)

    @property
    def longest(self) -> int:
        """Tokens of a request at its end."""
        return self.scenario.workload.input_tokens + self.scenario.workload.output_tokens

    def _drafter(self, system: SystemSection) -> DraftShape | None:
        if system.drafts == "none":
            return None
        if system.drafts == "mtp":
            return DraftShape.mtp(self.model, 1)
        acceptance = self.scenario.acceptance
        return DraftShape.dspark(self.model, len(acceptance.dspark), acceptance.layers)

    def _roofline(self, machines: Machines, units: int | None, drafter: DraftShape | None) -> Roofline:
        """Return the step times of devices that hold the whole model."""
        numbers, model = self.of(machines.device), _stored(self.model, machines)
        if units is None:
            placement = fewest(model, numbers, machines.attention, machines.stages)
        else:
            placement = Placement(units, machines.stages, machines.attention)
            MemoryFit(model, placement, numbers.get("memory")).check(f"{placement.all_units} x {numbers.device.name}")
        return Roofline(model, numbers, placement, self.losses(machines.device), drafter)

    def _part(self, roofline: Roofline) -> DeviceUnits:
        return DeviceUnits(roofline.numbers, roofline.placement.all_units)

    def _pair(
        self, system: SystemSection, units: int | None, drafter: DraftShape | None
    ) -> tuple[StepTimes, DeviceUnits, DeviceUnits, int]:
        """Two devices that make a step together: times, both parts, and requests that there is room for."""
        helper = system.helper
        assert helper is not None
        here, there, model = self.of(system.decode.device), self.of(helper.device), self.model
        if helper.does == "drafts":
            target = self._roofline(system.decode, units, None)
            assert drafter is not None
            size = drafter.layers * _feed_forward_bytes(model, drafter.feed_forward) + model.head * STORED[model.dense]
            count = helper.units[0] if helper.units else _racks(there, size)
            drafts = Roofline(model, there, Placement(count, 1, helper.attention), self.losses(helper.device), drafter)
            taps = TAPPED * model.hidden * STORED["bf16"]
            times: StepTimes = ExternalDrafter(target, drafts, Bridge.of(there, count), taps)
            return times, self._part(target), DeviceUnits(there, count), _fit(target).max_requests(self.longest)
        if units is None:
            raise ConfigError("units of the device that has attention: none are given")
        stored = _stored(model, helper)
        size = sum(_feed_forward_bytes(stored, layer.feed_forward) for layer in stored.layers)
        count = helper.units[0] if helper.units else _racks(there, size)
        placement = Placement(units, 1, system.decode.attention)
        attention = Roofline(model, here, placement, self.losses(system.decode.device), drafter)
        experts = Roofline(stored, there, Placement(count, 1, "tensor"), self.losses(helper.device))
        times = Hybrid(attention, experts, Bridge.of(there, count), helper.micro_batches)
        fit = MemoryFit(_without_feed_forward(model), placement, here.get("memory"))
        fit.check(f"{units} x {here.device.name} (attention alone)")
        return times, DeviceUnits(here, units), DeviceUnits(there, count), fit.max_requests(self.longest)


def varied(scenario: Scenario, device: str, name: str, value: float) -> Scenario:
    """The same, where a figure or a loss of a device has that value."""
    section = scenario.devices[device]
    changed = section.model_copy(update={"assumed": {**section.assumed, name: value}})
    return scenario.model_copy(update={"devices": {**scenario.devices, device: changed}})


def _stored(model: Model, machines: Machines) -> Model:
    return model if machines.stored is None else replace(model, dense=machines.stored, routed=machines.stored)


def _fit(roofline: Roofline) -> MemoryFit:
    return MemoryFit(roofline.model, roofline.placement, roofline.numbers.get("memory"))


def _feed_forward_bytes(model: Model, kind: FeedForward) -> float:
    return kind.common * STORED[model.dense] + kind.experts * kind.expert * STORED[model.routed]


def _without_feed_forward(model: Model) -> Model:
    return replace(model, layers=tuple(replace(layer, feed_forward=FeedForward(0)) for layer in model.layers))


def _racks(numbers: Numbers, size: float) -> int:
    """Units that hold so many bytes, in whole racks."""
    rack = int(numbers.get("rack_units")) if numbers.has("rack_units") else 1
    return rack * -(-int(size / (numbers.get("memory") * (1 - MemoryFit.spare)) + 1) // rack)
