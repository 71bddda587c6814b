"""The file that `sparkpool compare` reads: systems, their load, and assumptions."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compare.study.dspark import PUBLISHED_AUC, PUBLISHED_DSPARK, PUBLISHED_MTP, Drafting
from engine.section import Positive, Section, read_yaml, validated
from hardware.figure import Label
from hardware.placement import AttentionCut

Above = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[float, Field(gt=0)] | tuple[Above, Above]
"""A number; or, where it is not known, its lowest and highest value."""
LOSSES = ("compute", "memory", "network", "layer_us", "step_us")


def middle(value: Range) -> float:
    """The number, or the geometric middle of the range, as of published figures (hardware/figure.py)."""
    return math.sqrt(value[0] * value[1]) if isinstance(value, tuple) else value


class WorkloadSection(Section):
    """Requests of one size."""

    input_tokens: Positive
    """Of a prompt."""
    output_tokens: Positive
    """Of an answer."""
    cached_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of each prompt, the part that is in the prefill pool's cache already."""

    @property
    def context(self) -> int:
        """Return the tokens that a request has in cache, in the mean over its answer."""
        return self.input_tokens + self.output_tokens // 2

    @property
    def new_tokens(self) -> int:
        """Return the tokens of a prompt that are computed; the last one always is."""
        return max(1, round(self.input_tokens * (1 - self.cached_share)))


class AcceptanceSection(Section):
    """The gain of drafts."""

    mtp: Annotated[float, Field(ge=1, le=2)] = PUBLISHED_MTP
    """Tokens of a step with one draft of the model's own next-token layer."""
    dspark: tuple[Above, ...] = PUBLISHED_DSPARK
    """Tokens of a step with 1, 2, ... drafts of DSpark, all verified."""
    auc: Annotated[float, Field(gt=0.5, lt=1)] = sum(PUBLISHED_AUC) / 2
    """How well its confidences tell which drafts survive: area under the curve."""
    layers: Positive = 3
    """Of DSpark's drafter."""
    label: Label = Label.MEASURED
    """How much these numbers are worth (hardware/figure.py)."""
    source: str = (
        "InferenceX golden_al_distribution, SPEED-Bench coding: V4-Pro's next-token layer, V4-Pro-0813's DSpark; AUC: "
        "the middle of what the DSpark paper has"
    )

    @property
    def drafting(self) -> Drafting:
        return Drafting(self.dspark, self.auc, self.layers)


class LossesSection(Section):
    """The shares of a device's figures that steps get (hardware/roofline.py: Losses)."""

    compute: Share | tuple[Share, Share] = 1.0
    memory: Share | tuple[Share, Share] = 1.0
    network: Share | tuple[Share, Share] = 1.0
    layer_us: Range | Literal[0] = 0
    """Microseconds of each layer that depend on no work."""
    step_us: Range | Literal[0] = 0
    """Microseconds of each step that depend on no work."""
    source: Annotated[str, Field(min_length=8)]
    """Where these numbers are from."""


class DeviceSection(Section):
    """Assumptions on a device, wherever it is used."""

    losses: LossesSection | str
    """In numbers, or the name of a fit (compare/published/calibration.py)."""
    why: str = ""
    """Why a fit of another device or model holds here."""
    assumed: dict[str, Above] = Field(default_factory=dict)
    """Values of its unpublished figures, and of its losses that are ranges, each in the figure's unit.
    Without one it is the geometric middle of the range, and results are given over the whole range."""


class Machines(Section):
    """The devices of one replica."""

    device: str
    """One of hardware/devices/, or a YAML file."""
    units: tuple[Positive, ...] = ()
    """Of each stage; of several numbers, each result takes the best. None: the fewest that hold the model."""
    stages: Positive = 1
    attention: AttentionCut = "data"
    """Replicated, each unit with requests of its own; or cut by heads; or its cache by tokens
    (hardware/placement.py)."""
    stored: Literal["fp4", "fp8", "bf16"] | None = None
    """What all weights are stored in here. None: as in the checkpoint."""

    def beside(self, folder: Path) -> Self:
        return self.model_copy(update={"device": _device(self.device, folder)})


class Helper(Machines):
    """A second device that works on every step of decode."""

    does: Literal["feed_forward", "drafts"]
    """It has all experts and dense layers, and activations cross over twice in each layer; or it drafts, and the first
    device verifies."""
    micro_batches: Positive = 4
    """At most so many, of which one is computed while others cross."""


class SystemSection(Section):
    decode: Machines
    prefill: Machines | None = None
    """None: decode replicas prefill as well, a part of a prompt in each step."""
    helper: Helper | None = None
    drafts: Literal["none", "mtp", "fixed", "planned"] = "none"
    """No speculation; one token from the model's next-token layer; DSpark with whole blocks verified; DSpark with as
    many drafts verified as pay."""

    def beside(self, folder: Path) -> Self:
        parts = {name: part.beside(folder) for name, part in self if isinstance(part, Machines)}
        return self.model_copy(update=parts)


class MeasuredSection(Section):
    """Runs of `sparkpool bench` (its --json), one of each concurrency."""

    files: Annotated[list[Path], Field(min_length=1)]
    device: str = ""
    """What it ran on (hardware/devices), for power and cost; empty where nothing is known of these."""
    units: Above = 1
    """Devices that served."""
    note: str = ""
    """Which model and software, where."""

    def beside(self, folder: Path) -> Self:
        files = [(folder / file).resolve() for file in self.files]
        return self.model_copy(update={"files": files, "device": _device(self.device, folder)})


class Scenario(Section):
    title: Annotated[str, Field(min_length=3)]
    about: str = ""
    model: str
    """A known model (`sparkpool layout`), a checkpoint's directory or a config.json."""
    workload: WorkloadSection
    acceptance: AcceptanceSection = AcceptanceSection()
    devices: dict[str, DeviceSection] = Field(default_factory=dict)
    systems: dict[str, SystemSection] = Field(default_factory=dict)
    measured: dict[str, MeasuredSection] = Field(default_factory=dict)
    contenders: dict[str, str] = Field(default_factory=dict)
    """The systems that there is a verdict on, each with what it is held against: what one would have without it."""
    predictions: list[Path] = Field(default_factory=list)
    """What `make bench NAME=prediction` wrote of this project's own cluster: predicted beside measured."""
    steps: list[str] = Field(default_factory=list)
    """Systems from the first to the last, each with one thing more: what of the difference is due to what."""
    max_requests: Positive = 8192
    """Under way in a decode replica, at most: what its engine takes, if memory has room for more."""
    interactivity: tuple[Above, ...] = (20, 50, 100, 200, 400)
    """Tokens per second of each user at which costs are given."""
    decide_at: Annotated[tuple[Above, ...], Field(min_length=1)] = (100,)
    """The interactivities that there is a verdict for."""
    traffic: Above = 1e6
    """Output tokens per second of all users together: the whole demand."""
    gpu_layers: Above = 1.0
    """A factor on each layer's fixed time on GPUs: below one stands for an engine with fewer launches and less waiting
    than the one that losses were fitted on."""
    utilisation: Share = 0.8
    """Of the prefill pool's capacity, what is planned to be used. Its queues grow without end towards 1."""
    power: Literal["all-in", "chip"] = "all-in"
    """Which power counts: a unit's with everything around it, or the chip's alone. The two are never mixed."""
    energy: Above = 0.12
    """$ of a kWh, with the site's share. Only where a device's cost is not published and follows from its price."""
    capital: Range = (35.0, 70.0)
    """$ an hour of owning what costs a million, energy left out, where a device's cost is not published."""
    seed: int = 0

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if not (self.systems or self.measured or self.predictions):
            raise ValueError("neither systems nor measured: nothing to compare")
        if twice := sorted(self.systems.keys() & self.measured.keys()):
            raise ValueError(f"{twice[0]!r} is in systems and in measured")
        named = {"contenders": [*self.contenders, *self.contenders.values()], "steps": self.steps}
        for name, against in self.contenders.items():
            if name == against:
                raise ValueError(f"contenders: {name!r} is held against itself")
        for field, names in named.items():
            for name in names:
                if name not in self.systems:
                    raise ValueError(f"{field}: no system {name!r}; there are {', '.join(self.systems) or 'none'}")
        for name, system in self.systems.items():
            self._check(name, system)
        return self

    def _check(self, name: str, system: SystemSection) -> None:
        for machines in (system.decode, system.prefill, system.helper):
            if machines is not None and machines.device not in self.devices:
                raise ValueError(
                    f"systems.{name}: device {machines.device!r} is not in devices; "
                    f"{', '.join(self.devices) or 'none'} are there"
                )
        if system.helper is not None and system.helper.does == "drafts" and system.drafts in ("none", "mtp"):
            raise ValueError(f"systems.{name}: {system.helper.device} is to draft, and drafts is {system.drafts!r}")
        if system.helper is not None and system.decode.stages > 1:
            raise ValueError(f"systems.{name}: stages and a helper are not modelled together")

    @classmethod
    def load(cls, file: Path) -> "Scenario":
        """Read a scenario's file. Raise ConfigError that names the file and the key."""
        return read_yaml(file, cls).beside(file.parent)

    def beside(self, folder: Path) -> Self:
        """Measured files, devices that are files and a model that is one there begin at `folder`."""
        systems = {name: system.beside(folder) for name, system in self.systems.items()}
        changes = {
            "predictions": [(folder / file).resolve() for file in self.predictions],
            "measured": {name: one.beside(folder) for name, one in self.measured.items()},
            "devices": {_device(name, folder): section for name, section in self.devices.items()},
            "systems": systems,
            "model": str(folder / self.model) if (folder / self.model).exists() else self.model,
        }
        return self.model_copy(update=changes)

    @classmethod
    def parse(cls, content: object) -> "Scenario":
        return validated(content, cls, "scenario")


def _device(name: str, folder: Path) -> str:
    return str((folder / name).resolve()) if name.endswith((".yaml", ".yml")) else name
