"""The whole configuration, read from one YAML file."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from engine.config.gateway import GatewayConfig
from engine.config.model import ModelConfig
from engine.config.pools import DecodeConfig, EngineConfig, PrefillConfig
from engine.config.scaling import TargetsConfig
from engine.config.transfer import TransferConfig
from engine.errors import ConfigError
from engine.section import Section

PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


class Config(Section):
    """The configuration of a service."""

    model: ModelConfig = ModelConfig()
    transfer: TransferConfig = TransferConfig()
    prefill: PrefillConfig = PrefillConfig()
    decode: Annotated[dict[PoolName, DecodeConfig], Field(min_length=1)] = Field(
        default_factory=lambda: {"default": DecodeConfig()}
    )
    """The decode pools by name. `gateway.pool_policy` chooses the pool of a request that names none."""
    gateway: GatewayConfig = GatewayConfig()
    targets: TargetsConfig = TargetsConfig()

    @model_validator(mode="after")
    def _one_autoscaler(self) -> Self:
        """Serve takes either one autoscaling policy for all pools or one for each."""
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
        """Return whether any pool is scaled by service level (`scale`)."""
        return any(section.scale is not None for section in self.sections.values())

    @property
    def default_pool(self) -> str:
        """Return the name of the first decode pool."""
        return next(iter(self.decode))

    @property
    def sections(self) -> dict[str, EngineConfig]:
        """Return every pool's section by its key: prefill, decode.POOL."""
        return {"prefill": self.prefill, **{f"decode.{pool}": section for pool, section in self.decode.items()}}

    @property
    def pools(self) -> dict[str, PrefillConfig | DecodeConfig]:
        """Return every pool's section by the pool's name: prefill, POOL."""
        return {"prefill": self.prefill, **self.decode}

    @property
    def max_replicas(self) -> int:
        """Return the most replicas of all pools together at any time."""
        return sum(section.max_replicas for section in self.sections.values())

    @classmethod
    def load(cls, file: Path | None) -> "Config":
        """Read and check a YAML file; None gives the defaults. Raises ConfigError that names the key.

        Relative paths in the file are relative to its directory.
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
        """Check a mapping. Raises ConfigError that names every wrong key."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc'])) or 'file'}: {_reason(e['type'], e['msg'])}" for e in error.errors()
            ]
            raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def _reason(kind: str, message: str) -> str:
    return "unknown key" if kind == "extra_forbidden" else message
