"""The part of the configuration that says how a decode pool keeps the pace of a device that is not here."""

from typing import Annotated, Literal

from pydantic import Field

from engine.section import Positive, Section

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class EmulationConfig(Section):
    """Of a pool whose `device` is one of hardware/devices. Tokens are computed here, time is modelled there."""

    on: str = "cpu"
    """The torch device that computes the tokens."""
    model: str = ""
    """The model whose time it is: a directory, a config.json, or a known one (`sparkpool layout`). Empty: the one that
    is served."""
    precision: Literal["fp4", "fp8", "bf16"] | None = None
    """What its weights would be stored in there. None: as they are."""
    units: Positive | None = None
    """Units of a replica, in each stage. None: as few as hold the model, in whole racks of LPUs; of wafers as many
    stages."""
    stages: Positive = 1
    """Parts of the model, one after the other, each on `units` units."""
    attention: Literal["tensor", "data"] = "tensor"
    """Attention cut by heads over the units, or replicated, each unit with requests of its own."""
    draft_layers: Positive = 3
    """Layers of a DSpark drafter there."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    """How many seconds pass here for each that would there: what this machine must be slower by to keep up."""
    assumed: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Figures that nobody has published, by name, in the unit of the device's file; others are the middle of their
    range."""
    compute: Share = 1.0
    """The share of its arithmetic that steps get (hardware/roofline.py: Losses)."""
    memory: Share = 1.0
    """The share of its memory bandwidth."""
    network: Share = 1.0
    """The share of its network's bandwidth."""
    layer_seconds: NotNegative = 0.0
    """Seconds of each layer that depend on no work."""
    step_seconds: NotNegative = 0.0
    """Seconds of each step that depend on no work."""
    link_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """What handoffs come in with. None: `scale_out` of all units of a replica."""
    link_seconds: NotNegative | None = None
    """The latency of a handoff. None: the device's `bridge`, or 0 if it has none."""
