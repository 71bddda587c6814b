"""An emulated device, from the section of a decode pool: the times of its steps and handoffs."""

from dataclasses import dataclass, replace

from engine.clock import Clock
from engine.config import Config, DecodeConfig, EmulationConfig
from engine.errors import ConfigError
from engine.transfer import Transfer
from hardware.device import Device, Numbers
from hardware.link import Link
from hardware.model import Model
from hardware.pace import ModelledPace, Scaled
from hardware.paced import PacedTransfer
from hardware.placement import MemoryFit, Placement, fewest
from hardware.roofline import DraftShape, Losses, Roofline


@dataclass(frozen=True)
class Emulation:
    """The emulated device of one decode pool."""

    device: str
    section: EmulationConfig
    roofline: Roofline

    @classmethod
    def of(cls, config: Config, pool: str, block_length: int) -> "Emulation":
        """Return the device of a pool that drafts blocks of `block_length`. Raises ConfigError for an unknown device, a
        figure that it lacks, and a model that does not fit it."""
        section = config.decode[pool]
        try:
            return cls._of(config, section, block_length)
        except ConfigError as error:
            raise ConfigError(f"decode.{pool}.device: {error}") from None

    @classmethod
    def _of(cls, config: Config, section: DecodeConfig, block_length: int) -> "Emulation":
        how = section.emulation
        numbers = Numbers(Device.load(section.device), how.assumed)
        model = Model.of(how.model or config.model.path)
        if how.precision is not None:
            model = replace(model, dense=how.precision, routed=how.precision)
        placement = _placement(model, numbers, how)
        losses = Losses(
            how.compute_efficiency,
            how.memory_efficiency,
            how.network_efficiency,
            how.layer_seconds,
            how.step_seconds,
            "the configuration",
        )
        drafter = None
        if block_length and config.model.drafter == "mtp":
            drafter = DraftShape.mtp(model, block_length)
        elif block_length:
            drafter = DraftShape.dspark(model, block_length, how.draft_layers)
        emulation = cls(section.device, how, Roofline(model, numbers, placement, losses, drafter))
        emulation.roofline.verify_seconds(1, 1, 1)  # raises now if a figure is missing
        emulation.link()
        return emulation

    @property
    def times(self) -> Scaled:
        """Return the modelled step times, multiplied by `time_scale`."""
        return Scaled(self.roofline, self.section.time_scale)

    def link(self) -> Link:
        """Return the link over which one replica reads handoffs."""
        how, numbers = self.section, self.roofline.numbers
        bandwidth = how.link_bytes_per_second or numbers.get("scale_out") * self.roofline.placement.all_units
        latency = how.link_seconds
        if latency is None:
            latency = numbers.get("bridge") if numbers.has("bridge") else 0.0
        return Link(bandwidth / how.time_scale, latency * how.time_scale)

    def pace(self, clock: Clock) -> ModelledPace:
        scale = self.section.time_scale
        return ModelledPace(self.times, clock, emulated=self.device + (f", time x {scale:g}" if scale != 1 else ""))

    def paced(self, transfer: Transfer, clock: Clock) -> PacedTransfer:
        return PacedTransfer(transfer, self.link(), clock)


def _placement(model: Model, numbers: Numbers, how: EmulationConfig) -> Placement:
    """Return the section's placement, or the one with the fewest units that hold the model."""
    if how.units is None:
        return fewest(model, numbers, how.attention, how.stages)
    found = MemoryFit(model, Placement(how.units, how.stages, how.attention), numbers.get("memory"))
    found.check(f"{numbers.device.name}, emulation.units {how.units}")
    return found.placement
