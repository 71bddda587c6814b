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
    """The options that prefill and decode pools share: replicas, device, threads and pages."""

    replicas: Positive = 1
    """Replicas of the pool, if their number is fixed."""
    autoscaling_config: dict[str, Any] | None = None
    """Ray Serve's own autoscaling_config (min_replicas, max_replicas, ...), instead of `replicas` or `scale`."""
    scale: ScaleConfig | None = None
    """The bounds between which the pool is scaled by `targets`, instead of `replicas` or `autoscaling_config`."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas that a redeploy may start before it stops old ones, in per cent of the pool, 0 to 100. With 0 old ones
    stop first, which needs no spare devices; while the only replica of a pool is replaced, requests wait."""
    drain_seconds: Seconds = 120.0
    """Seconds that a replica which is being removed has to finish its requests; after that they continue on others."""
    device: str = "cpu"
    """The device that the pool runs on: a torch device (cpu, cuda, cuda:1), or in a decode pool the name of a device
    that is emulated, one of hardware/devices (groq-3-lpx)."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for arithmetic in each replica. 0: the node's cores divided by the most replicas of all pools
    together."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that Ray reserves for each replica. 0 reserves none, so that replicas can share a small machine."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources that each replica takes, such as {prefill: 1}; they bind the pool to the nodes that have
    them."""
    max_requests: Positive = 32
    """The most requests that run at once in a replica."""
    max_waiting: Positive = 256
    """The most requests that wait in a replica; further ones are refused with RESOURCE_EXHAUSTED."""
    cache_bytes: ByteSize | None = None
    """Bytes for the pages of the KV cache in each replica, such as 256MiB. None: `cache_fraction` decides."""
    cache_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share, above 0 and below 1, of the memory that is free after loading which pages get if `cache_bytes` is
    None."""
    drafting: bool = True
    """Whether the pool takes part in speculative decoding, if there is a `model.drafter`: prefill replicas then write
    the drafter's context into the pages, decode replicas draft."""
    prefix_caching: bool = True
    """Whether pages are kept after a request has ended and shared by requests that begin with the same tokens."""
    warm_up: bool = True
    """Whether a replica runs a step of every kind before it reports that it is ready."""

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
                raise ValueError(f"{name} is not a custom resource; num_cpus and device decide it")
            if amount > 1 and amount % 1:
                raise ValueError(f"{name}: {amount} is above 1 and not whole, which Ray refuses")
        return resources

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def max_replicas(self) -> int:
        """Return the most replicas of the pool at any time."""
        if self.scale is not None:
            return self.scale.max_replicas
        return self.replicas if self.autoscaling_config is None else int(self.autoscaling_config.get("max_replicas", 1))


class PrefillConfig(EngineConfig):
    """The prefill pool."""

    chunk_tokens: Positive = 512
    """The most tokens that a step computes, over all prompts in it; a longer prompt takes several steps."""
    lease_seconds: Seconds = 30.0
    """Seconds for which pages of a finished prompt are kept while no decode replica renews the lease on them."""


class DecodeConfig(EngineConfig):
    """One decode pool."""

    planner: Literal["causal", "lagged", "fixed"] = "causal"
    """How the number of drafts to verify is chosen: by the confidences of these drafts and the step times (causal); by
    the confidences of two steps before, so that planning hides behind the step (lagged); or always `fixed_drafts`
    (fixed)."""
    fixed_drafts: Annotated[int, Field(ge=0)] = 3
    """Drafts of each request that `planner: fixed` verifies in a step."""
    synthetic_acceptance: Annotated[tuple[Probability, ...], Field(min_length=1)] | None = None
    """Only for benchmarks with random weights: the probability, 0 to 1, that the draft at each position of a block is
    accepted if those before it were, without regard to the model; drafts beyond the list are rejected. None: drafts are
    accepted by the exact rules."""
    step_times: Path | None = None
    """A directory where measured step times, which the planner needs, are kept from one start to the next, by model,
    drafter, device, dtype, threads and `max_requests`. None: they are measured at every start."""
    record: Path | None = None
    """A directory where each replica writes a file with the drafts, verified and accepted tokens and times of every
    step (decode/record.py). None: nothing is written."""
    local_chunk_tokens: Annotated[int, Field(ge=0)] = 64
    """The most prompt tokens that a replica of this pool computes itself between two decode steps, for which its
    running requests wait. 0: every prompt is prefilled by the prefill pool. An emulated pool never prefills."""
    release_timeout_seconds: Seconds = 10.0
    """Seconds until a handoff counts as lost if the prefill replica does not answer the release of its pages."""
    read_timeout_seconds: Seconds = 60.0
    """Seconds until a handoff counts as lost if the read of its pages has not ended."""
    stream_interval: Positive = 1
    """Tokens that are gathered before they are sent to the client; the first token and the last are sent at once."""
    emulation: EmulationConfig = EmulationConfig()
    """How the device is emulated, if `device` is one of hardware/devices (groq-3-lpx)."""

    @property
    def emulated(self) -> bool:
        """Return whether `device` is not a torch device."""
        try:
            torch.device(self.device)
        except RuntimeError:
            return True
        return False

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.emulation.compute_device if self.emulated else self.device)

    @property
    def prefills(self) -> bool:
        """Return whether the pool prefills some prompts itself. An emulated device has no modelled prefill."""
        return self.local_chunk_tokens > 0 and not self.emulated
