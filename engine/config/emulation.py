"""The section `decode.POOL.emulation`: how a pool keeps the pace of a device that this machine does not have."""

from typing import Annotated, Literal

from pydantic import Field

from engine.section import Positive, Section

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class EmulationConfig(Section):
    """Used by a decode pool whose `device` is one of hardware/devices: a torch device computes the tokens, and each
    step waits until it has taken as long as the emulated device would need."""

    compute_device: str = "cpu"
    """The torch device that computes the tokens: cpu, cuda, cuda:1."""
    model: str = ""
    """The model whose step times are emulated: a directory with a config.json, a config.json, or a model that
    `sparkpool layout` knows by name. Empty: the model that is served."""
    precision: Literal["fp4", "fp8", "bf16"] | None = None
    """The format of the weights on the emulated device. None: the format of the checkpoint."""
    units: Positive | None = None
    """Units (GPUs, LPUs, wafers) of the emulated device in each pipeline stage of a replica. None: the fewest that hold
    the model: of LPUs whole racks, of wafers one in each of as many stages as are needed."""
    stages: Positive = 1
    """Pipeline stages of a replica: parts of the model, one after the other, each on `units` units."""
    attention: Literal["tensor", "data"] = "tensor"
    """How attention is divided among the units of a stage: by heads (tensor), or by requests, with the attention
    weights on every unit (data)."""
    draft_layers: Positive = 3
    """Layers of the emulated DSpark drafter."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    """Seconds that pass here for one second on the emulated device. A step that this machine cannot compute in that
    time is counted as an overrun."""
    assumed: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Values for figures of the device that are unpublished, by name, in the unit of the device's file, such as
    {bridge: 5}. An unpublished figure that is not here is the middle of its range."""
    compute_efficiency: Share = 1.0
    """The share of the device's peak arithmetic that a step reaches, above 0 and at most 1."""
    memory_efficiency: Share = 1.0
    """The share of the device's memory bandwidth that a step reaches, above 0 and at most 1."""
    network_efficiency: Share = 1.0
    """The share of the bandwidth between units that a step reaches, above 0 and at most 1."""
    layer_seconds: NotNegative = 0.0
    """Seconds that each layer takes in addition, whatever the batch."""
    step_seconds: NotNegative = 0.0
    """Seconds that each step takes in addition, whatever the batch."""
    link_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """The bandwidth, in bytes per second, at which a replica receives handoffs. None: the device's `scale_out`, for all
    units of the replica."""
    link_seconds: NotNegative | None = None
    """The latency of a handoff in seconds. None: the device's `bridge`, or 0 if it has none."""
