"""The part of the configuration that says how clients are met."""

from typing import Annotated, Literal

from pydantic import Field

from engine.section import Positive, Seconds, Section


class GatewayConfig(Section):
    """The front."""

    replicas: Positive = 1
    """Gateway replicas."""
    front: Literal["haproxy", "direct", "proxy"] = "haproxy"
    """What clients talk to: HAProxy, the gateways themselves, or Serve's proxy in Python. Chosen when Ray starts."""
    drain_seconds: Annotated[float, Field(ge=0)] = 2.0
    """How long a gateway that is taken away still takes requests (haproxy, direct), until everybody knows."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] = 9000
    """The front's gRPC port, without TLS. haproxy: on `http_host`; else Serve's proxy listens, on every interface."""
    http_host: str = "127.0.0.1"
    """The front listens on this address: for HTTP, and HAProxy for gRPC too."""
    http_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The front's HTTP port."""
    max_ongoing: Positive = 512
    """Requests that one gateway replica works on at once."""
    max_queued: Positive = 512
    """Requests that may wait for a gateway replica before they get RESOURCE_EXHAUSTED."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a request is prefilled again after a replica or a handoff was lost. All requests together may be so
    `max_ongoing` times, and for each one that ends well half a time more: a service that loses everything does not
    drown in its own attempts."""
    queued_seconds: Seconds = 60.0
    """Seconds of work that may wait before prefill; who comes then gets RESOURCE_EXHAUSTED. What would be served later
    than the new request does not count."""
    pool_policy: Literal["first", "fastest", "spill"] = "first"
    """The decode pool of a request that names none: the first; the one that gives it most tokens per second now; or the
    first that gives it `targets.tokens_per_second`, and if none does, the fastest."""
    tiers: dict[str, str] = Field(default_factory=dict)
    """The decode pool of each `service_tier` that a request may name, such as {interactive: lpx, standard: default}."""
    default_max_tokens: Positive = 256
    """`max_tokens` of a request that gives none (cut to what the model still takes)."""
    request_seconds: Seconds = 600.0
    """The longest a request may take."""
