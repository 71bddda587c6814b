"""The sections `targets` and `scale`: the service levels that scaling keeps, and the replicas that it may use."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.section import Positive, Seconds, Section


class TargetsConfig(Section):
    """Service levels and budgets. Pools that have a `scale` are scaled to keep them."""

    ttft_seconds: Seconds = 2.0
    """The target for the time to the first token in seconds, kept at `ttft_percentile`."""
    ttft_percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0
    """The per cent of requests for which `ttft_seconds` is to be kept, above 0 and below 100."""
    tokens_per_second: Annotated[float, Field(gt=0)] = 20.0
    """The target for the tokens per second that each request gets after its first token."""
    devices: Annotated[float, Field(gt=0)] | None = None
    """The most devices that all scaled pools may use together. None: no limit."""
    watts: Annotated[float, Field(gt=0)] | None = None
    """The most watts that all scaled pools may use together. None: no limit."""
    down_seconds: Seconds = 60.0
    """A pool is scaled down when fewer replicas would have been enough for this many seconds."""
    record: Path | None = None
    """A directory to which the load and the decision of every second are written, to be replayed (policy/scale.py).
    None: decisions are only logged."""


class ScaleConfig(Section):
    """The bounds of a pool that is scaled by service level (`targets`)."""

    min_replicas: Positive = 1
    """The fewest replicas."""
    max_replicas: Positive = 1
    """The most replicas; at least `min_replicas`."""
    devices: Annotated[float, Field(ge=0)] = 1.0
    """The devices that each replica uses, counted against `targets.devices`."""
    watts: Annotated[float, Field(ge=0)] = 0.0
    """The watts that each replica uses, counted against `targets.watts`."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self
