"""The sections `prefill` and `decode.POOL`: the replicas of each pool."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ByteSize, Field, field_validator, model_validator

from engine.config.emulation import EmulationConfig
from engine.config.scaling import ScaleConfig
from engine.section import Positive, Seconds, Section

RAYS_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
Probability = Annotated[float, Field(ge=0, le=1)]


class EngineConfig(Section):
    """What both pools have in common: one replica's place, threads and pages."""

    replicas: Positive = 1
    """Replicas in the pool."""
    autoscaling_config: dict[str, Any] | None = None
    """Ray Serve's own autoscaling_config (min_replicas, max_replicas, ...), instead of `replicas`."""
    scale: ScaleConfig | None = None
    """Between how many replicas the pool is scaled by `targets`, instead of `replicas`."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas more than the pool has, in per cent of it, that a redeploy may start before it stops old ones. 0 stops
    first, which needs no spare devices; a pool of one replica then has none for a while, and requests wait."""
    drain_seconds: Seconds = 120.0
    """How long a replica that is taken away may finish what it has; then its requests go on elsewhere."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for arithmetic in each replica; 0 divides the node's cores among all replicas."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that Ray sets aside for each replica; 0 lets replicas share a small machine."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources that each replica takes, such as {prefill: 1}; they tie a pool to the nodes that have it."""
    max_requests: Positive = 32
    """Requests that may run at once in a replica."""
    max_waiting: Positive = 256
    """Requests that may wait in a replica before more are turned away."""
    cache_bytes: ByteSize | None = None
    """Bytes for pages in each replica, such as 256MiB. If not set, `cache_fraction` decides."""
    cache_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the memory that is free after loading, taken for pages if `cache_bytes` is not set."""
    drafting: bool = True
    """Take part in speculation, if there is a `model.drafter`: prefill writes its context, decode drafts."""
    prefix_caching: bool = True
    """Keep pages of requests that have ended, and let requests that begin with the same tokens share them."""
    warm_up: bool = True
    """Run a step of every kind before the replica reports ready."""

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> Self:
        ways = {"replicas", "autoscaling_config", "scale"} & self.model_fields_set
        ways = {way for way in ways if getattr(self, way) is not None}
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(sorted(ways))} contradict each other; keep one")
        return self

    @field_validator("resources")
    @classmethod
    def _as_ray_counts_them(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in RAYS_OWN_RESOURCES:
                raise ValueError(f"{name} is not a custom resource; num_cpus and device say it")
            if amount > 1 and amount % 1:
                raise ValueError(f"{name}: {amount} is above 1 and not whole, which Ray refuses")
        return resources

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def max_replicas(self) -> int:
        """Replicas that there may be at once."""
        if self.scale is not None:
            return self.scale.max_replicas
        return self.replicas if self.autoscaling_config is None else int(self.autoscaling_config.get("max_replicas", 1))


class PrefillConfig(EngineConfig):
    """The prefill pool."""

    chunk_tokens: Positive = 512
    """Tokens that one step computes, over all prompts in it; a longer prompt goes in chunks."""
    lease_seconds: Seconds = 30.0
    """How long pages are kept for a decode replica that says nothing."""


class DecodeConfig(EngineConfig):
    """One decode pool."""

    planner: Literal["causal", "lagged", "fixed"] = "causal"
    """How many drafts are verified: by confidence and measured step times (causal, lagged), or `fixed_drafts`."""
    fixed_drafts: Annotated[int, Field(ge=0)] = 3
    """Drafts of each request that `planner: fixed` verifies."""
    synthetic_acceptance: Annotated[tuple[Probability, ...], Field(min_length=1)] | None = None
    """For benchmarks on random weights, never for serving: how often the draft at each place is accepted if those
    before it were, whatever the model thinks of it; beyond the list none is. None: the exact rules."""
    step_times: Path | None = None
    """A directory where the step times that a planner needs are kept from one start to the next, by model, drafter,
    device, dtype, threads and `max_requests`. None: they are measured at every start."""
    record: Path | None = None
    """A directory where each replica writes a file of what every step drafted, verified, accepted and took
    (decode/record.py). None: nothing is written."""
    local_chunk_tokens: Annotated[int, Field(ge=0)] = 64
    """Tokens of prompts that are prefilled in this pool itself, computed between two decode steps: running answers
    wait as long. 0: this pool prefills nothing."""
    answer_seconds: Seconds = 10.0
    """How long a release may go unanswered before the handoff counts as lost."""
    read_seconds: Seconds = 60.0
    """How long a read may take before the handoff counts as lost."""
    stream_interval: Positive = 1
    """Tokens that an answer gathers before it sends them on; the first token and the end go at once."""
    emulation: EmulationConfig = EmulationConfig()
    """How the pace of a `device` is kept that is none of torch's but one of hardware/devices (groq-3-lpx)."""

    @property
    def emulated(self) -> bool:
        """Whether `device` is none of torch's."""
        try:
            torch.device(self.device)
        except RuntimeError:
            return True
        return False

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.emulation.on if self.emulated else self.device)

    @property
    def prefills(self) -> bool:
        """Whether it prefills some prompts itself. An emulated device does not: nobody has modelled that."""
        return self.local_chunk_tokens > 0 and not self.emulated
