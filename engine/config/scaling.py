"""The parts of the configuration that say how a service is scaled."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.section import Positive, Seconds, Section


class TargetsConfig(Section):
    """What the service promises, and what it may cost: pools that have a `scale` are scaled by it."""

    ttft_seconds: Seconds = 2.0
    """Seconds from the arrival of a request to its first token, at `ttft_percentile`."""
    ttft_percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0
    """The share of requests, in per cent, for which `ttft_seconds` shall hold."""
    tokens_per_second: Annotated[float, Field(gt=0)] = 20.0
    """Tokens per second that each user shall have at least, once the first token is there."""
    devices: Annotated[float, Field(gt=0)] | None = None
    """Devices that all scaled pools may have together. None: no limit."""
    watts: Annotated[float, Field(gt=0)] | None = None
    """Watts that all scaled pools may have together. None: no limit."""
    down_seconds: Seconds = 60.0
    """A pool gets smaller when fewer replicas would have been enough for so long."""
    record: Path | None = None
    """A directory where every load and what was decided for it is written, to be replayed (policy/scale.py). None:
    decisions are only logged."""


class ScaleConfig(Section):
    """Of one pool that is scaled by service level (`targets`)."""

    min_replicas: Positive = 1
    """Replicas at least."""
    max_replicas: Positive = 1
    """Replicas at most."""
    devices: Annotated[float, Field(ge=0)] = 1.0
    """Devices of each replica, for `targets.devices`."""
    watts: Annotated[float, Field(ge=0)] = 0.0
    """Watts of each replica, for `targets.watts`."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self
