"""The placement of a replica's weights, requests and tokens on its units, and whether they fit."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.errors import ConfigError
from hardware.device import Numbers
from hardware.model import STORED, Model

MAX_UNITS = 2**16
AttentionCut = Literal["data", "tensor", "context"]


@dataclass(frozen=True)
class Placement:
    """One replica: `stages` one after the other, each with a share of the layers on `units` units.

    Experts are spread over a stage's units. Attention is either replicated, each unit with requests of its own
    ("data"); or cut by heads ("tensor"): then every unit reads the cache of all requests, of which a latent cannot be
    cut and is replicated; or its weights are cut so and its cache by tokens ("context"), which takes one sum more.
    Dense layers are cut over the units in all three; so is the head.
    """

    units: int
    stages: int = 1
    attention: AttentionCut = "data"

    def __post_init__(self) -> None:
        if self.units < 1 or self.stages < 1:
            raise ConfigError(f"a replica of {self.stages} stages with {self.units} units each is none")

    @property
    def all_units(self) -> int:
        return self.units * self.stages

    def share_of_cache(self, shards: int) -> float:
        """Return the share of the cache of all requests that one unit of a stage holds and reads."""
        return 1 / min(self.units, shards) if self.attention == "tensor" else 1 / self.units

    @property
    def copies(self) -> int:
        """Units of a stage that hold the same attention weights."""
        return self.units if self.attention == "data" else 1


@dataclass(frozen=True)
class MemoryFit:
    """A model on a replica whose units have so many bytes. `spare`: the share of memory that neither weights nor cache
    may have (activations, buffers, fragmentation)."""

    model: Model
    placement: Placement
    unit_bytes: float
    spare: float = 0.1

    @cached_property
    def weights_bytes(self) -> float:
        """Return the weights of one unit: its share of one stage's experts and head, and its part of attention or all
        of it."""
        model, placement = self.model, self.placement
        attention = (
            sum(layer.attention.parameters + layer.hyper_connections for layer in model.layers) * STORED[model.dense]
        )
        split = model.weight_bytes - attention
        return (split / placement.units + attention * placement.copies / placement.units) / placement.stages

    def request_bytes(self, context: int) -> float:
        """Return the bytes of one unit for each request that the replica holds."""
        total = 0.0
        for kind, layers in self.model.attentions.items():
            held = sum(entry.at(context) for entry in kind.cache)
            total += layers * held * self.placement.share_of_cache(kind.shards)
        return total / self.placement.stages

    @property
    def room(self) -> float:
        """Bytes of one unit for cache; negative: what the weights lack."""
        return self.unit_bytes * (1 - self.spare) - self.weights_bytes

    def max_requests(self, context: int) -> int:
        """Requests of so many tokens each that there is room for."""
        return max(0, int(self.room / self.request_bytes(context)))

    def check(self, where: str) -> None:
        """Raises ConfigError that says by how much the model is too large."""
        if self.room <= 0:
            units = self.placement.all_units
            usable = self.unit_bytes * (1 - self.spare)
            raise ConfigError(
                f"{self.model.name} does not fit {where}: {self.weights_bytes / 1e9:.2f} GB of weights on each of "
                f"{units} units that have {usable / 1e9:.2f} GB for them; {-self.room * units / 1e9:,.1f} GB too much "
                "in all"
            )


def fewest(model: Model, numbers: Numbers, attention: AttentionCut, stages: int = 1) -> Placement:
    """The smallest replica that holds the model: whole racks of LPUs side by side, of wafers as many stages as it
    takes. Raises ConfigError if none does."""
    device = numbers.device
    step = int(numbers.get("rack_units")) if device.kind == "lpu" else 1
    for count in range(1, MAX_UNITS // step):
        placement = (
            Placement(1, count, attention) if device.kind == "wafer" else Placement(count * step, stages, attention)
        )
        if MemoryFit(model, placement, numbers.get("memory")).room > 0:
            return placement
    raise ConfigError(f"{model.name} does not fit {device.name}, however many units")
