"""The configuration: one frozen model, read from one YAML file. Unknown keys and impossible pairs fail at start.

Every class receives its own section, never the whole. What start-up finds out (pages, limits) is `ModelFacts`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator

from engine.emulation import EmulationConfig
from engine.errors import ConfigError
from engine.front import GatewayConfig
from engine.section import Positive, Seconds, Section
from engine.targets import ScaleConfig, TargetsConfig

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "tiny-mla"
SHIPPED_DRAFTER = SHIPPED_MODEL.with_name("tiny-mla-dspark")
RAYS_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
Probability = Annotated[float, Field(ge=0, le=1)]
PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


class ModelConfig(Section):
    """Which checkpoint, and how it is computed."""

    path: Path = SHIPPED_MODEL
    """A directory in Hugging Face format: config.json, *.safetensors, tokenizer files."""
    name: str = ""
    """The name clients may ask for; empty takes the directory's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights, arithmetic and cache."""
    page_tokens: Annotated[int, Field(ge=16, le=1024)] = 64
    """Tokens in a page; the same in both pools."""
    drafter: Literal["mtp"] | Path | None = None
    """A DSpark drafter for this model (a directory: config.json and *.safetensors in DeepSpec's format), or `mtp`: the
    next-token layer of the checkpoint itself. None: no speculation."""
    mtp_drafts: Annotated[int, Field(ge=1, le=16)] = 1
    """Tokens that `drafter: mtp` drafts in a step, one after the other."""

    @property
    def served_name(self) -> str:
        return self.name or self.path.name

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class TransferConfig(Section):
    """How pages travel between the pools."""

    num_threads: Annotated[int, Field(ge=0)] = 0
    """Extra UCX worker threads in each NIXL agent."""
    progress_thread: bool = False
    """A thread in each NIXL agent that drives transfers. It spins and takes a core. Without it a read over TCP waits
    for the prefill engine's step to end; RDMA and shared memory need no one on that side."""
    poll_seconds: Seconds = 0.001
    """How often a waiting engine looks for messages and finished reads."""


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


class Config(Section):
    """The whole file."""

    model: ModelConfig = ModelConfig()
    transfer: TransferConfig = TransferConfig()
    prefill: PrefillConfig = PrefillConfig()
    decode: Annotated[dict[PoolName, DecodeConfig], Field(min_length=1)] = Field(
        default_factory=lambda: {"default": DecodeConfig()}
    )
    """Decode pools by name; a request that names none goes where `gateway.pool_policy` says."""
    gateway: GatewayConfig = GatewayConfig()
    targets: TargetsConfig = TargetsConfig()

    @model_validator(mode="after")
    def _one_autoscaler(self) -> Self:
        """Serve asks either one policy for all pools or one for each."""
        by_target = [name for name, section in self.sections.items() if section.scale is not None]
        by_serve = [name for name, section in self.sections.items() if section.autoscaling_config is not None]
        if by_target and by_serve:
            both = f"{by_target[0]}.scale and {by_serve[0]}.autoscaling_config"
            raise ValueError(f"{both}: pools are scaled by targets or by Serve, not some by one and some by the other")
        for name, limit in (("devices", self.targets.devices), ("watts", self.targets.watts)):
            least = sum(
                section.scale.min_replicas * getattr(section.scale, name)
                for section in self.sections.values()
                if section.scale is not None
            )
            if limit is not None and least > limit:
                raise ValueError(f"targets.{name}: {limit:g}, and min_replicas of all pools need {least:g}")
        return self

    @model_validator(mode="after")
    def _no_decode_pool_is_called_prefill(self) -> Self:
        if "prefill" in self.decode:
            raise ValueError(
                "decode.prefill: there is one prefill pool, and this is a decode pool; give it another name"
            )
        return self

    @model_validator(mode="after")
    def _tiers_have_pools(self) -> Self:
        for tier, pool in self.gateway.tiers.items():
            if pool not in self.decode:
                raise ValueError(f"gateway.tiers.{tier}: there is no decode pool {pool!r}")
        return self

    @model_validator(mode="after")
    def _synthetic_acceptance_has_drafts(self) -> Self:
        for pool, section in self.decode.items():
            if section.synthetic_acceptance is not None and (self.model.drafter is None or not section.drafting):
                raise ValueError(
                    f"decode.{pool}.synthetic_acceptance: nothing is drafted without model.drafter and "
                    f"decode.{pool}.drafting"
                )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.gateway.grpc_port == self.gateway.http_port:
            raise ValueError("gateway.grpc_port and gateway.http_port are the same port")
        return self

    @property
    def scaled(self) -> bool:
        """Whether any pool is scaled by service level."""
        return any(section.scale is not None for section in self.sections.values())

    @property
    def default_pool(self) -> str:
        """The first decode pool."""
        return next(iter(self.decode))

    @property
    def sections(self) -> dict[str, EngineConfig]:
        """Every pool's section by its key: prefill, decode.POOL."""
        return {"prefill": self.prefill, **{f"decode.{pool}": section for pool, section in self.decode.items()}}

    @property
    def pools(self) -> dict[str, PrefillConfig | DecodeConfig]:
        """Every pool's section by the pool's name."""
        return {"prefill": self.prefill, **self.decode}

    @property
    def max_replicas(self) -> int:
        """Replicas that there may be at once, over all pools."""
        return sum(section.max_replicas for section in self.sections.values())

    @classmethod
    def load(cls, file: Path | None) -> "Config":
        """Read and check a YAML file; None gives the defaults. Raises ConfigError that names the key.

        Relative paths in it start at the file's own directory.
        """
        if file is None:
            return cls()
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except FileNotFoundError:
            raise ConfigError(f"{file}: no such file") from None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not YAML: {error}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: holds a {type(content).__name__}, not a mapping of sections")
        config = cls.parse(content, str(file))
        decode = {pool: section.beside(file.parent) for pool, section in config.decode.items()}
        model, targets = config.model.beside(file.parent), config.targets.beside(file.parent)
        return config.model_copy(update={"model": model, "decode": decode, "targets": targets})

    @classmethod
    def parse(cls, content: dict[str, object], source: str = "configuration") -> "Config":
        """Check a mapping. Raises ConfigError with every wrong key."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc'])) or 'file'}: {_reason(e['type'], e['msg'])}" for e in error.errors()
            ]
            raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def _reason(kind: str, message: str) -> str:
    return "unknown key" if kind == "extra_forbidden" else message
